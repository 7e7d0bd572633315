/** Every verdict: what is well is ok, and each thing that is not has its status, its words and a remedy. */
import test from 'ava';
import fc from 'fast-check';
import {finding, type Finding, type Problem} from '../../src/check/finding.ts';
import {
	clockFinding,
	guestFinding,
	libvirtFinding,
	memoryFinding,
	podVmsFinding,
	secureExecutionFinding,
	sshFinding,
} from '../../src/check/host-findings.ts';
import {
	guardFinding,
	networkFinding,
	networkProtectionFinding,
	programsFinding,
	routeFinding,
	unknownSubnetFinding,
	vxlanPortFinding,
} from '../../src/check/network-findings.ts';
import {directoryFinding, identityFinding} from '../../src/check/node-findings.ts';
import type {
	LibvirtObservation,
	MissingProtection,
	NetworkObservation,
	NetworkProtectionObservation,
	PodVmsObservation,
	PoolObservation,
	SshObservation,
	VolumeObservation,
} from '../../src/check/observations.ts';
import {baseVolumeFinding, diskFinding, poolFinding} from '../../src/check/storage-findings.ts';

const gib = 1024n ** 3n;
const ssh: SshObservation = {user: 'root', host: 'kvm', port: 22, durationMs: 180.4, exposedKeys: []};
const libvirt: LibvirtObservation = {
	driver: 'QEMU',
	version: '9.0.0',
	hostname: 'lpar1',
	transport: 'ssh kvm:22',
	roundTripMs: 0.61,
};
const pool: PoolObservation = {
	type: 'dir',
	path: '/images',
	isActive: true,
	autostarts: true,
	availableBytes: 100n * gib,
};
const volume: VolumeObservation = {
	declaredFormat: 'qcow2',
	capacityBytes: 20n * gib,
	allocatedBytes: 2n * gib,
	content: {format: 'qcow2', hasBackingFile: false},
};
const network: NetworkObservation = {
	isActive: true,
	autostarts: true,
	forwardMode: 'nat',
	subnet: '192.168.122.0/24',
	vmAddress: '192.168.122.2',
	hasSpanningTree: false,
};
const wish = {towards: '192.168.122.0/24', forwarderPort: 15_150, vxlanPort: 9000};
const protectedNetwork: NetworkProtectionObservation = {filter: 'caa-podvm-dhcp-1', isolatedPorts: true};
const missing: MissingProtection = {
	absent: 'unavailable',
	reason: 'it is macvtap',
	remedy: 'Use a bridge.',
	isRequired: false,
};
const now = new Date('2026-06-01T00:00:00Z');
const identity = {
	source: 'files',
	state: 'usable',
	validFrom: new Date('2026-01-01T00:00:00Z'),
	validTo: new Date('2027-01-01T00:00:00Z'),
} as const;
const trusting = {skipsVerification: false, now};
const demand = {vms: 10, memoryMib: 8192, rootDiskGib: 10};
const directory = {path: '/run/peerpod', nearest: '/run/peerpod', availableBytes: gib};

const foreignVms = (count: number): PodVmsObservation['foreign'] =>
	Array.from({length: count}, (_, index) => ({name: `podvm-${index}`, podsDir: '/run/other'}));

const cases: ReadonlyArray<
	readonly [title: string, found: Finding, status: Finding['status'], text: RegExp, remedy?: RegExp]
> = [
	['ssh: a verified host', sshFinding(ssh), 'ok', /^root@kvm port 22: login ok \(180 ms\), host key verified$/],
	[
		'ssh: a host key accepted without proof',
		sshFinding({...ssh, unproven: 'the host key is not verified (no_verify=1); it is SHA256:x'}),
		'warning',
		/no_verify=1.*SHA256:x/,
		/known_hosts/,
	],
	[
		'ssh: a key that others can read',
		sshFinding({...ssh, exposedKeys: ['/k']}),
		'warning',
		/can access \/k$/,
		/chmod 600 \/k/,
	],

	['clock: in step', clockFinding(-4.9), 'ok', /agree/],
	['clock: not told', clockFinding(undefined), 'skipped', /cannot run commands/],
	['clock: ahead', clockFinding(90), 'warning', /90 s ahead of/, /chrony/],
	['clock: behind', clockFinding(-3600 * 5), 'warning', /5 h behind/, /chrony/],
	['clock: minutes', clockFinding(-600), 'warning', /10 min behind/, /chrony/],
	[
		'clock: so far behind that new certificates are not valid yet',
		clockFinding(-90_000),
		'failure',
		/25 h behind.*not valid yet/,
		/chrony/,
	],
	['clock: as far ahead', clockFinding(90_000), 'warning', /25 h ahead/, /chrony/],

	['pod VMs: none', podVmsFinding({count: 0, foreign: []}), 'ok', /^0 pod VMs of this node$/],
	["pod VMs: this daemon's", podVmsFinding({count: 1, foreign: []}), 'ok', /^1 pod VM of this node$/],
	[
		'pod VMs: one of another daemon',
		podVmsFinding({count: 3, foreign: foreignVms(1)}),
		'warning',
		/^3 pod VMs of this node; 1 of them belongs to another daemon with PODS_DIR \/run\/other: podvm-0$/,
		/NODE_NAME.*PODS_DIR.*virsh undefine NAME --remove-all-storage/,
	],
	[
		'pod VMs: many of other daemons',
		podVmsFinding({count: 7, foreign: [{name: 'podvm-x', podsDir: ''}, ...foreignVms(6)]}),
		'warning',
		/7 of them belong .* PODS_DIR \(unknown\), \/run\/other: podvm-x, podvm-0, podvm-1, podvm-2, podvm-3 and 2 more$/,
		/by hand/,
	],

	[
		'libvirt: as it should be',
		libvirtFinding(libvirt),
		'ok',
		/^libvirt 9\.0\.0 \(QEMU\) on lpar1, 0\.6 ms per call, over ssh kvm:22$/,
	],
	['libvirt: of the oldest version', libvirtFinding({...libvirt, version: '7.6.0'}), 'ok', /7\.6\.0/],
	['libvirt: of a newer minor version', libvirtFinding({...libvirt, version: '10.0.0'}), 'ok', /10\.0\.0/],
	[
		'libvirt: too old',
		libvirtFinding({...libvirt, version: '7.5.9'}),
		'warning',
		/older than 7\.6\.0/,
		/Update libvirt/,
	],
	[
		'libvirt: of a much older version',
		libvirtFinding({...libvirt, version: '6.10.0'}),
		'warning',
		/older/,
		/Update libvirt/,
	],
	['libvirt: the test driver', libvirtFinding({...libvirt, driver: 'TEST'}), 'warning', /no real VMs/, /qemu\+ssh/],
	[
		'libvirt: far away',
		libvirtFinding({...libvirt, roundTripMs: 140}),
		'warning',
		/140 ms per call.*twelve such calls/,
		/network/,
	],

	[
		'guests: by KVM',
		guestFinding({domainType: 'kvm', machine: 's390-ccw-virtio-9.2'}),
		'ok',
		/\(s390-ccw-virtio-9\.2\) with KVM/,
	],
	[
		'guests: emulated',
		guestFinding({domainType: 'qemu', machine: 's390-ccw-virtio-7.2'}),
		'warning',
		/emulation; slow, for tests only/,
		/kvm/,
	],

	[
		'Secure Execution: wanted and there',
		secureExecutionFinding({supported: true}, true),
		'ok',
		/can run confidential VMs.*attestation/,
	],
	[
		'Secure Execution: wanted and not there',
		secureExecutionFinding({supported: false, reason: 'it has no KVM', remedy: 'Use another.'}, true),
		'failure',
		/cannot.*it has no KVM$/,
		/^Use another\.$/,
	],
	[
		'Secure Execution: there and not wanted',
		secureExecutionFinding({supported: true}, false),
		'ok',
		/turned off.*the host supports it/,
	],
	[
		'Secure Execution: neither',
		secureExecutionFinding({supported: false, reason: 'it has no KVM', remedy: 'Use another.'}, false),
		'ok',
		/turned off.*does not support it: it has no KVM/,
	],

	[
		'memory: enough for all',
		memoryFinding({totalBytes: 256n * gib, availableBytes: 80n * gib}, demand),
		'ok',
		/^80 GiB of 256 GiB available, enough for 10 more pod VMs of 8 GiB$/,
	],
	[
		'memory: enough for some',
		memoryFinding({totalBytes: 256n * gib, availableBytes: 79n * gib}, demand),
		'warning',
		/enough for 9 pod VMs of 8 GiB, not for 10 more/,
		/LIBVIRT_MEMORY/,
	],
	[
		'memory: not enough for one',
		memoryFinding({totalBytes: 8n * gib, availableBytes: 7n * gib}, demand),
		'failure',
		/one pod VM needs 8 GiB/,
		/LIBVIRT_MEMORY/,
	],
	[
		'memory: no more VMs are to come',
		memoryFinding({totalBytes: 8n * gib, availableBytes: 0n}, {...demand, vms: 0}),
		'ok',
		/^0 B of .*the limit of pod VMs is reached$/,
	],

	['pool: as it should be', poolFinding('p', pool), 'ok', /^pool p of type dir at \/images, active$/],
	...(['fs', 'netfs'] as const).map(
		type => [`pool: of type ${type}`, poolFinding('p', {...pool, type}), 'ok', new RegExp(type)] as const,
	),
	...(['logical', 'rbd', 'disk', 'iscsi', 'zfs'] as const).map(
		type =>
			[
				`pool: of type ${type}`,
				poolFinding('p', {...pool, type}),
				'failure',
				/type is not supported/,
				/dir, fs, netfs/,
			] as const,
	),
	[
		'pool: not active',
		poolFinding('p', {...pool, isActive: false}),
		'failure',
		/it is not active/,
		/virsh pool-start p/,
	],
	[
		'pool: not started with the host',
		poolFinding('p', {...pool, autostarts: false}),
		'warning',
		/does not start with the host/,
		/virsh pool-autostart p/,
	],
	[
		'pool: neither',
		poolFinding('p', {...pool, isActive: false, autostarts: false}),
		'failure',
		/not active; it does not start/,
		/pool-start p.*pool-autostart p/,
	],

	['base volume: qcow2', baseVolumeFinding('p', 'v', volume), 'ok', /^v, qcow2 of 20 GiB, 2 GiB stored$/],
	[
		'base volume: a name that stands for a version',
		baseVolumeFinding('p', 'v', {...volume, version: 'v-20260101T000000Z.qcow2'}),
		'ok',
		/^v, an alias of v-2026\S+\.qcow2, qcow2 of/,
	],
	[
		'base volume: raw',
		baseVolumeFinding('p', 'v', {
			...volume,
			declaredFormat: 'raw',
			content: {format: 'raw', hasBackingFile: false},
		}),
		'ok',
		/raw/,
	],
	[
		'base volume: qcow2 that libvirt takes for raw',
		baseVolumeFinding('p', 'v', {...volume, declaredFormat: 'raw'}),
		'failure',
		/its content is qcow2/,
		/pool-refresh p/,
	],
	[
		'base volume: raw that libvirt takes for qcow2',
		baseVolumeFinding('p', 'v', {...volume, content: {format: 'raw', hasBackingFile: false}}),
		'failure',
		/not qcow2/,
		/pool-refresh p/,
	],
	[
		'base volume: an overlay',
		baseVolumeFinding('p', 'v', {...volume, content: {format: 'qcow2', hasBackingFile: true}}),
		'warning',
		/backing file/,
		/qemu-img convert/,
	],
	[
		'base volume: nothing to start from',
		baseVolumeFinding('p', 'v', {...volume, content: {unfit: 'it is encrypted', remedy: 'Decrypt it.'}}),
		'failure',
		/it is encrypted/,
		/^Decrypt it\. .*image push/,
	],
	[
		'base volume: that cannot be read',
		baseVolumeFinding('p', 'v', {...volume, content: {unreadable: 'not supported'}}),
		'warning',
		/not supported.*unverified/,
		/qemu-img info/,
	],

	[
		'disk: enough for all',
		diskFinding(pool, demand),
		'ok',
		/^100 GiB available in the pool, enough for 10 more pod VMs of 10 GiB$/,
	],
	[
		'disk: enough until they grow',
		diskFinding({availableBytes: 99n * gib}, demand),
		'warning',
		/10 more pod VMs can grow to 10 GiB/,
		/LIBVIRT_ROOT_DISK_SIZE/,
	],
	['disk: full', diskFinding({availableBytes: gib - 1n}, demand), 'failure', /soon needs 1 GiB/, /more space/],
	['disk: no more VMs are to come', diskFinding({availableBytes: 0n}, {...demand, vms: 0}), 'ok', /0 B/],

	[
		'network: as it should be',
		networkFinding('n', network),
		'ok',
		/^network n \(nat\), subnet 192\.168\.122\.0\/24, active$/,
	],
	[
		'network: a bridge of the host',
		networkFinding('n', {isActive: true, autostarts: true, forwardMode: 'bridge', hasSpanningTree: false}),
		'ok',
		/not managed by libvirt/,
	],
	[
		'network: isolated, with spanning tree',
		networkFinding('n', {isActive: true, autostarts: true, subnet: '10.0.0.0/24', hasSpanningTree: true}),
		'ok',
		/isolated.*about 3 s/,
	],
	[
		'network: not active',
		networkFinding('n', {...network, isActive: false}),
		'failure',
		/it is not active/,
		/virsh net-start n/,
	],
	[
		'network: not started with the host',
		networkFinding('n', {...network, autostarts: false}),
		'warning',
		/does not start/,
		/virsh net-autostart n/,
	],

	[
		'network protection: both',
		networkProtectionFinding(protectedNetwork, []),
		'ok',
		/^new VMs get the network filter caa-podvm-dhcp-1, isolated ports$/,
	],
	[
		'network protection: none is possible',
		networkProtectionFinding({filter: missing, isolatedPorts: missing}, ['podvm-a']),
		'warning',
		/^no network filter \(it is macvtap\).*addresses of other pod VMs/,
		/Use a bridge/,
	],
	[
		'network protection: a filter that is required',
		networkProtectionFinding({...protectedNetwork, filter: {...missing, isRequired: true}}, []),
		'failure',
		/required, so no pod VM starts/,
		/Use a bridge/,
	],
	[
		'network protection: isolation that is required',
		networkProtectionFinding({...protectedNetwork, isolatedPorts: {...missing, isRequired: true}}, []),
		'failure',
		/no isolated ports \(it is macvtap\); it is required/,
		/Use a bridge/,
	],
	[
		'network protection: no isolation beside the filter',
		networkProtectionFinding({...protectedNetwork, isolatedPorts: missing}, []),
		'ok',
		/no isolated ports \(it is macvtap\)$/,
	],
	[
		'network protection: switched off',
		networkProtectionFinding({filter: {...missing, absent: 'off'}, isolatedPorts: {...missing, absent: 'off'}}, [
			'podvm-a',
		]),
		'ok',
		/^no network filter/,
	],
	[
		'network protection: VMs of an earlier version',
		networkProtectionFinding(protectedNetwork, ['a', 'b', 'c', 'd', 'e', 'f']),
		'warning',
		/6 pod VMs run without a filter: a, b, c, d, e, …$/,
		/Delete their pods/,
	],

	[
		'programs: all there',
		programsFinding({versions: {ip: '6.1.0', nft: '1.0.6'}}),
		'ok',
		/^ip 6\.1\.0, nft 1\.0\.6$/,
	],
	[
		'programs: one is missing',
		programsFinding({versions: {ip: '6.1.0', nft: null}}),
		'failure',
		/^ip 6\.1\.0; nft missing$/,
		/nftables/,
	],
	[
		'tunnel guard: all are bound',
		guardFinding({bound: 2, unbound: 0, dropped: 0}),
		'ok',
		/^2 tunnels accept only packets of their own VM$/,
	],
	[
		'tunnel guard: packets of others',
		guardFinding({bound: 0, unbound: 0, dropped: 7}),
		'ok',
		/; 7 foreign packets dropped$/,
	],
	[
		'tunnel guard: VMs of an earlier version',
		guardFinding({bound: 1, unbound: 2, dropped: 1}),
		'warning',
		/1 foreign packet dropped; 2 VMs attached by an earlier version/,
		/update it/,
	],
	['programs: none', programsFinding({versions: {ip: null}}), 'failure', /none found; ip missing/, /iproute2/],

	[
		'route: on the same subnet',
		routeFinding({dst: '192.168.122.0/24', dev: 'eth0'}, wish),
		'ok',
		/^192\.168\.122\.0\/24 through eth0, directly$/,
	],
	[
		'route: a route of its own',
		routeFinding({dst: '192.168.0.0/16', dev: 'eth0', gateway: '10.0.0.9'}, wish),
		'ok',
		/gateway 10\.0\.0\.9$/,
	],
	[
		'route: the default route',
		routeFinding({dst: '0.0.0.0/0', dev: 'eth0', gateway: '10.0.0.1'}, wish),
		'warning',
		/default route/,
		/TCP 15150 and UDP 9000.*ip route add 192\.168\.122\.0\/24/,
	],
	[
		'route: another interface than HOST_INTERFACE',
		routeFinding({dst: '192.168.122.0/24', dev: 'eth0'}, {...wish, hostInterface: 'enc1'}),
		'warning',
		/HOST_INTERFACE is enc1/,
		/Set HOST_INTERFACE to eth0/,
	],
	[
		'route: HOST_INTERFACE',
		routeFinding({dst: '192.168.122.0/24', dev: 'enc1'}, {...wish, hostInterface: 'enc1'}),
		'ok',
		/enc1/,
	],

	[
		'route: where the VMs are is not known',
		unknownSubnetFinding('n', undefined),
		'failure',
		/network n .*not contain an IPv4 address/,
		/HOST_INTERFACE/,
	],
	[
		'route: where the VMs are is not known, but the interface is',
		unknownSubnetFinding('n', 'enc1'),
		'skipped',
		/tunnels use enc1/,
	],

	[
		'VXLAN port: free',
		vxlanPortFinding(9000, {isFree: true, sharing: [], programs: [], freePort: 9001}),
		'ok',
		/^UDP 9000 is usable/,
	],
	[
		'VXLAN port: shared with an interface of the same kind',
		vxlanPortFinding(9000, {isFree: true, sharing: ['flannel.1'], programs: [], freePort: 9001}),
		'warning',
		/flannel\.1 uses it too/,
		/VXLAN_PORT/,
	],
	[
		"VXLAN port: of the cluster's network",
		vxlanPortFinding(4789, {isFree: false, sharing: ['genev'], programs: [], freePort: 9000}),
		'failure',
		/^UDP 4789 is in use by the interface genev/,
		/9000/,
	],
	[
		'VXLAN port: of a program',
		vxlanPortFinding(9000, {
			isFree: false,
			sharing: [],
			programs: [
				{name: 'MainThread', pid: 12, commandLine: 'node server.js'},
				{name: 'nc', pid: 13},
			],
			freePort: 9001,
		}),
		'failure',
		/in use by MainThread \(pid 12, "node server\.js"\), nc \(pid 13\)$/,
		/VXLAN_PORT to a free UDP port, for example 9001\./,
	],
	[
		'VXLAN port: of nobody that can be seen',
		vxlanPortFinding(9000, {isFree: false, sharing: [], programs: [], freePort: 9001}),
		'failure',
		/unknown user/,
		/VXLAN_PORT/,
	],

	[
		'directory: writable',
		directoryFinding('PODS_DIR', directory),
		'ok',
		/^\/run\/peerpod is writable, 1 GiB available$/,
	],
	[
		'directory: to be made',
		directoryFinding('PODS_DIR', {...directory, nearest: '/run'}),
		'ok',
		/will be created in \/run/,
	],
	[
		'directory: not writable',
		directoryFinding('PODS_DIR', {
			...directory,
			unwritable: {reason: 'read-only file system', where: {path: '/run'}},
		}),
		'failure',
		/^\/run\/peerpod; read-only file system$/,
		/PODS_DIR/,
	],
	[
		'directory: full',
		directoryFinding('PODS_DIR', {
			...directory,
			unwritable: {reason: 'no space left on device', where: {path: '/run'}, remedy: 'Free space.'},
		}),
		'failure',
		/^\/run\/peerpod; no space left on device$/,
		/^Free space\. Or set PODS_DIR/,
	],
	[
		'directory: forbidden',
		directoryFinding('PODS_DIR', {
			...directory,
			unwritable: {reason: 'permission denied', where: {path: '/run', mode: '0700'}, remedy: 'Give access.'},
		}),
		'failure',
		/; permission denied \(mode "0700"\)$/,
		/^Give access\./,
	],
	[
		'directory: nearly full',
		directoryFinding('PODS_DIR', {...directory, availableBytes: 1024n}),
		'warning',
		/1 KiB available; low on space/,
		/Free space/,
	],

	[
		'TLS identity: none yet',
		identityFinding({source: 'own', state: 'absent'}, trusting),
		'ok',
		/created when the daemon starts/,
	],
	[
		'TLS identity: of our own',
		identityFinding({...identity, source: 'own'}, trusting),
		'ok',
		/^own CA, valid until 2027-01-01$/,
	],
	[
		'TLS identity: damaged',
		identityFinding({source: 'own', state: 'unusable', reason: 'it is damaged'}, trusting),
		'warning',
		/it is damaged/,
		/sets it aside/,
	],
	['TLS identity: of the administrator', identityFinding(identity, trusting), 'ok', /CACERT_FILE.*2027/],
	[
		'TLS identity: over',
		identityFinding(identity, {...trusting, now: new Date('2027-01-02T00:00:00Z')}),
		'failure',
		/expired/,
		/Renew/,
	],
	[
		'TLS identity: not begun',
		identityFinding(identity, {...trusting, now: new Date('2025-01-02T00:00:00Z')}),
		'failure',
		/not valid before 2026.*clock of this node is at 2025/,
		/clock.*Renew/,
	],
	[
		'TLS identity: of our own, not begun',
		identityFinding({...identity, source: 'own'}, {...trusting, now: new Date('2025-01-02T00:00:00Z')}),
		'failure',
		/not valid before 2026/,
		/^Set the clock of this node\.$/,
	],
	[
		'TLS identity: over soon',
		identityFinding(identity, {...trusting, now: new Date('2026-12-22T00:00:00Z')}),
		'warning',
		/expires in 10 days/,
		/Renew/,
	],
	[
		'TLS identity: VMs that nobody verifies',
		identityFinding(identity, {...trusting, skipsVerification: true}),
		'warning',
		/not verified/,
		/TLS_SKIP_VERIFY/,
	],
];

for (const [title, found, status, text, remedy] of cases) {
	test(`${title}: ${status}`, t => {
		t.is(found.status, status);
		t.regex(found.text, text);
		t.is(found.remedy !== undefined, remedy !== undefined, found.remedy);
		t.regex(found.remedy ?? '', remedy ?? /^$/);
	});
}

test('texts are phrases without a full stop, remedies are sentences', t => {
	for (const [title, {text, remedy = 'Fine.'}] of cases) {
		t.notRegex(text, /\.$|\.;/, title);
		t.regex(remedy, /^[A-Z].*\.$/, title);
	}
});

test('the worst of several problems sets the status, and each problem is shown', t => {
	const problem = fc.record({
		status: fc.constantFrom('warning', 'failure'),
		text: fc.lorem(),
		remedy: fc.lorem(),
	}) as fc.Arbitrary<Problem>;
	fc.assert(
		fc.property(fc.array(problem), problems => {
			const found = finding('fact', ...problems, undefined);
			t.is(
				found.status,
				problems.some(({status}) => status === 'failure') ? 'failure' : problems.length > 0 ? 'warning' : 'ok',
			);
			t.true(problems.every(({text, remedy}) => found.text.includes(text) && found.remedy?.includes(remedy)));
		}),
	);
});

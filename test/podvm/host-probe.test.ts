/**
 * What libvirt is seen to have: networks and domains of its test driver, volumes of a real storage driver with real
 * files.
 */
import {copyFile, writeFile} from 'node:fs/promises';
import test from 'ava';
import {LibvirtError} from '../../src/libvirt/wire/errors.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {HostCapabilities} from '../../src/podvm/host-capabilities.ts';
import {
	countRunningVms,
	observeBaseVolume,
	observeGuests,
	observeLibvirt,
	observeMemory,
	observeNetwork,
	observePodVms,
	observePool,
	observeSecureExecution,
} from '../../src/podvm/host-probe.ts';
import {VmSlots} from '../../src/podvm/vm-slots.ts';
import {specOf} from '../contract/pod-vms.ts';
import {baseCapacity, baseVolume, intercept, podVmsOn, startLibvirtHost, type LibvirtHost} from './libvirt-host.ts';

const signal = AbortSignal.timeout(300_000);
const stack = new AsyncDisposableStack();
let host: LibvirtHost;
let storage: LibvirtSession;
let made: LibvirtSession;

test.before(async () => {
	host = stack.use(await startLibvirtHost());
	const session = (uri: string): LibvirtSession =>
		stack.use(
			new LibvirtSession({
				uri,
				openPipe: openUnixPipe(
					{...parseLibvirtUri(`test:///default?socket=${host.libvirtd.socketPath}`), transport: 'unix'},
					{},
				),
			}),
		);
	storage = session('qemu:///session');
	made = session('test:///default');
});
test.after.always(async () => stack.disposeAsync());

test('the probe returns the version, the host name and the latency of libvirt', async t => {
	const startedAt = performance.now();
	const {driver, version, hostname, transport, roundTripMs} = await observeLibvirt(made, signal);
	const tookMs = performance.now() - startedAt;
	t.is(driver, 'TEST');
	t.regex(version, /^\d+\.\d+\.\d+$/);
	t.not(hostname, '');
	t.true(transport.includes(host.libvirtd.socketPath));
	t.true(roundTripMs > 0 && roundTripMs < tookMs / 2, `${roundTripMs} of ${tookMs} ms`);
});

test('a host without s390x is an error that says so', async t => {
	await t.throwsAsync(observeGuests(new HostCapabilities(made), undefined, signal), {message: /cannot run s390x/});
});

test('a driver that cannot be asked for Secure Execution, or refuses to tell, has none', async t => {
	const cannot = await observeSecureExecution(new HostCapabilities(host.calls), signal);
	t.regex('reason' in cannot ? cannot.reason : '', /^its libvirt cannot tell \(.*not supported.*\)$/);
	const {capabilities} = await host.calls.call(procedures.connectGetCapabilities, undefined, signal);
	const refuses = await observeSecureExecution(
		new HostCapabilities({
			onState: listener => storage.onState(listener),
			call: async (procedure, args, ...rest) =>
				procedure.name === procedures.connectGetCapabilities.name
					? ({capabilities: capabilities.replaceAll('/usr/bin/qemu-system-s390x', '/nonexistent')} as never)
					: storage.call(procedure, args, ...rest),
		}),
		signal,
	);
	t.regex('reason' in refuses ? refuses.reason : '', /^its libvirt cannot tell \(.*\/nonexistent.*\)$/);
});

test('the machine type of guests is returned; CPUs that the host does not have are an error', async t => {
	t.like(await observeGuests(new HostCapabilities(host.calls), '0', signal), {
		domainType: 'qemu',
		machine: 's390-ccw-virtio-7.2',
	});
	const {capabilities} = await host.calls.call(procedures.connectGetCapabilities, undefined, signal);
	const calls = intercept(host.calls);
	const topology = '<topology><cells><cell id="0"><cpus num="1"><cpu id="0"/></cpus></cell></cells></topology>';
	calls.answer = procedure =>
		procedure === procedures.connectGetCapabilities.name
			? {capabilities: capabilities.replace('</host>', `${topology}</host>`)}
			: undefined;
	const capabilitiesWithCpus = new HostCapabilities(calls);
	t.like(await observeGuests(capabilitiesWithCpus, '0', signal), {domainType: 'qemu'});
	await t.throwsAsync(observeGuests(capabilitiesWithCpus, '0-1', signal), {message: /LIBVIRT_CPUSET names CPUs/});
});

test('available memory includes caches; if the driver lacks a value, the other one is used', async t => {
	const {totalBytes, availableBytes} = await observeMemory(storage, signal);
	const {params} = await storage.call(procedures.nodeGetMemoryStats, {nparams: 4, cellNum: -1, flags: 0}, signal);
	t.is(totalBytes, (params.find(({field}) => field === 'total')?.value ?? 0n) * 1024n);
	t.true(
		availableBytes > (params.find(({field}) => field === 'buffers')?.value ?? 0n) * 1024n &&
			availableBytes < totalBytes,
	);
	t.is((await observeMemory(made, signal)).totalBytes, 3n * 1024n ** 3n);
});

test('a pool shows its type, path, state, autostart and space', async t => {
	const pool = await host.pool();
	const found = await observePool(storage, pool.name, signal);
	t.like(found, {type: 'dir', path: pool.directory, isActive: true, autostarts: false});
	t.true(found.availableBytes > 0n);
	await t.throwsAsync(observePool(storage, 'none', signal), {instanceOf: LibvirtError, message: /pool-list/});
});

test('a pool that is not active has no space', async t => {
	const xml =
		"<pool type='logical'><name>idle</name><source><name>vg</name></source><target><path>/dev/vg</path></target></pool>";
	await using own = new LibvirtSession({
		uri: `test://${host.libvirtd.directory}/idle.xml`,
		openPipe: openUnixPipe(
			{...parseLibvirtUri(`test:///default?socket=${host.libvirtd.socketPath}`), transport: 'unix'},
			{},
		),
	});
	await writeFile(`${host.libvirtd.directory}/idle.xml`, `<node>${xml}</node>`);
	const {pool} = await own.call(procedures.storagePoolLookupByName, {name: 'idle'}, signal);
	await own.call(procedures.storagePoolDestroy, {pool}, signal);
	t.like(await observePool(own, 'idle', signal), {type: 'logical', isActive: false, availableBytes: 0n});
});

test('a volume shows what it is by its own bytes, whatever libvirt takes it for', async t => {
	const pool = await host.pool();
	const qcow2 = await observeBaseVolume(storage, pool.name, baseVolume, signal);
	t.like(qcow2, {declaredFormat: 'qcow2', capacityBytes: baseCapacity, content: {format: 'qcow2'}});
	t.true(qcow2.allocatedBytes > 0n && qcow2.allocatedBytes < 1024n ** 2n);
	t.like(await observeBaseVolume(storage, pool.name, pool.otherVolume, signal), {
		declaredFormat: 'raw',
		content: {format: 'raw'},
	});

	const {pool: handle} = await storage.call(procedures.storagePoolLookupByName, {name: pool.name}, signal);
	await storage.call(
		procedures.storageVolCreateXml,
		{
			pool: handle,
			xml: '<volume><name>empty</name><capacity>1000000</capacity><target><format type="qcow2"/></target></volume>',
			flags: 0,
		},
		signal,
	);
	const {content} = await observeBaseVolume(storage, pool.name, 'empty', signal);
	t.regex('unfit' in content ? content.unfit : '', /the content was not uploaded/);

	await storage.call(
		procedures.storageVolCreateXml,
		{
			pool: handle,
			flags: 0,
			xml:
				`<volume><name>overlay</name><capacity>${baseCapacity}</capacity><target><format type="qcow2"/></target>` +
				`<backingStore><path>${pool.directory}/${baseVolume}</path><format type="qcow2"/></backingStore></volume>`,
		},
		signal,
	);
	t.deepEqual((await observeBaseVolume(storage, pool.name, 'overlay', signal)).content, {
		format: 'qcow2',
		hasBackingFile: true,
	});

	// Behind libvirt's back.
	await writeFile(`${pool.directory}/${baseVolume}`, 'zIPL, and so on');
	t.deepEqual((await observeBaseVolume(storage, pool.name, baseVolume, signal)).content, {
		format: 'raw',
		hasBackingFile: false,
	});
});

test('for an alias, the version that it points to is returned', async t => {
	const {name, directory} = await host.pool();
	const {pool} = await storage.call(procedures.storagePoolLookupByName, {name}, signal);
	const version = 'image-20260102T030405Z.qcow2';
	await copyFile(`${directory}/${baseVolume}`, `${directory}/${version}`);
	await storage.call(procedures.storagePoolRefresh, {pool, flags: 0}, signal);
	await storage.call(
		procedures.storageVolCreateXml,
		{
			pool,
			flags: 0,
			xml:
				`<volume><name>image.qcow2</name><capacity>${baseCapacity}</capacity><allocation>0</allocation><target><format type="qcow2"/></target>` +
				`<backingStore><path>${directory}/${version}</path><format type="qcow2"/></backingStore></volume>`,
		},
		signal,
	);
	t.like(await observeBaseVolume(storage, name, 'image.qcow2', signal), {
		version,
		declaredFormat: 'qcow2',
		content: {format: 'qcow2'},
	});
});

test('a volume whose content cannot be read is returned without it; a missing volume is an error', async t => {
	const {pool} = await made.call(procedures.storagePoolLookupByName, {name: 'default-pool'}, signal);
	await made.call(
		procedures.storageVolCreateXml,
		{
			pool,
			xml: "<volume><name>v</name><capacity>1000000</capacity><target><format type='qcow2'/></target></volume>",
			flags: 0,
		},
		signal,
	);
	const {content} = await observeBaseVolume(made, pool.name, 'v', signal);
	t.regex('unreadable' in content ? content.unreadable : '', /not supported/);
	await t.throwsAsync(observeBaseVolume(made, pool.name, 'none', signal), {
		message: /Can't retrieve volume none.*LIBVIRT_VOL_NAME/,
	});
});

test('a network shows its state, subnet and an address that a VM may get', async t => {
	t.like(await observeNetwork(made, 'default', signal), {
		isActive: true,
		autostarts: false,
		forwardMode: 'nat',
		subnet: '192.168.122.0/24',
		vmAddress: '192.168.122.2',
		hasSpanningTree: true,
	});
	await t.throwsAsync(observeNetwork(made, 'none', signal), {instanceOf: LibvirtError, message: /net-list/});
});

const networks: ReadonlyArray<readonly [xml: string, seen: object]> = [
	['<forward mode="bridge"/><bridge name="br0"/>', {forwardMode: 'bridge', hasSpanningTree: false}],
	[
		'<forward mode="open"/><bridge name="virbr7" stp="off"/><ip address="10.1.2.3" prefix="20"/>',
		{forwardMode: 'open', subnet: '10.1.0.0/20', vmAddress: '10.1.2.3', hasSpanningTree: false},
	],
	[
		'<bridge name="virbr8" stp="on"/><ip family="ipv6" address="fd00::1" prefix="64"/><ip address="10.1.2.3" netmask="255.255.255.128"/>',
		{subnet: '10.1.2.0/25', vmAddress: '10.1.2.3', hasSpanningTree: true},
	],
];
for (const [index, [inside, seen]] of networks.entries()) {
	test(`a network is seen as it is described: ${inside}`, async t => {
		const path = `${host.libvirtd.directory}/network-${index}.xml`;
		await writeFile(path, `<node><network><name>n</name>${inside}</network></node>`);
		await using own = new LibvirtSession({
			uri: `test://${path}`,
			openPipe: openUnixPipe(
				{...parseLibvirtUri(`test:///default?socket=${host.libvirtd.socketPath}`), transport: 'unix'},
				{},
			),
		});
		t.deepEqual(await observeNetwork(own, 'n', signal), {isActive: true, autostarts: false, ...seen} as never);
	});
}

test('only running VMs of this cluster and node are counted', async t => {
	const uuidOf = (node: string, slot: number): string => new VmSlots('counted', node).at(slot).uuid.toString('hex');
	const define = async (name: string, uuid: string, isStarted: boolean): Promise<void> => {
		const xml = `<domain type="test"><name>${name}</name><uuid>${uuid}</uuid><memory>1024</memory><os><type>hvm</type></os></domain>`;
		const {dom} = await made.call(procedures.domainDefineXmlFlags, {xml, flags: 0}, signal);
		if (isStarted) {
			await made.call(procedures.domainCreateWithFlags, {dom, flags: 0}, signal);
		}
	};

	await define('one', uuidOf('n', 0), true);
	await define('two', uuidOf('n', 1), true);
	await define('idle', uuidOf('n', 2), false);
	await define('other', uuidOf('m', 0), true);
	t.is(await countRunningVms(made, 'counted', 'n', signal), 2);
});

test('only VMs of this node that belong to another PODS_DIR are reported', async t => {
	const [pool, owner] = [await host.pool(), {cluster: 'observed', node: 'node'}];
	const [ours, other] = [
		{fingerprint: 'aa', path: '/run/a'},
		{fingerprint: 'bb', path: '/run/b'},
	];
	t.deepEqual(await observePodVms(host.calls, owner, ours, signal), {count: 0, foreign: []});
	const start = async (more: object): Promise<string> =>
		(await podVmsOn(host.calls, pool, {...owner, ...more}).start(specOf(), signal)).name;
	await Promise.all([start({podsDir: ours}), start({}), start({node: 'other-node', podsDir: other})]);
	const foreign = [await start({podsDir: other}), await start({podsDir: other})].sort();
	t.deepEqual(await observePodVms(host.calls, owner, ours, signal), {
		count: 4,
		foreign: foreign.map(name => ({name, podsDir: '/run/b'})),
	});
	t.deepEqual(
		(await observePodVms(host.calls, owner, {...ours, fingerprint: 'bb'}, signal)).foreign.length,
		1,
		'by the fingerprint, whatever the path',
	);
});

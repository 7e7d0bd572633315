/**
 * The kernel's particulars: what goes wrong on nodes, what earlier runs and other programs leave, and how many
 * processes it takes.
 */
import {mkdtemp, readFile, rm, watch, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {parseTable, transaction} from '../../src/network/nft.ts';
import {podAddress, warnings, NetworkTestbed} from './testbed.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);
const vm = '192.168.122.105';

test('a VXLAN port that the cluster network uses in metadata mode is an error with the interface', async t => {
	await using testbed = await NetworkTestbed.create();
	await testbed.sh('ip link add vxlan_sys_4789 up type vxlan external dstport 4789');
	await using networks = testbed.networks();
	const error = await t.throwsAsync<AdaptorError>(networks.check(signal()));
	t.is(error.code, 'failed-precondition');
	t.regex(error.message, /VXLAN_PORT 4789 is in use.*vxlan_sys_4789.*Set VXLAN_PORT/v);
	t.notRegex(await testbed.sh('ip link show'), /caa-probe/v);
	await using other = testbed.networks({vxlanPort: 9000});
	await t.notThrowsAsync(other.check(signal()));
});

test('a shared VXLAN port is a warning, a free port is none, and the check leaves nothing', async t => {
	await using testbed = await NetworkTestbed.create();
	const {log, reasons} = warnings();
	await using networks = testbed.networks({log});
	await networks.check(signal());
	t.deepEqual(reasons, []);
	await testbed.sh('ip link add vxlan.calico up type vxlan id 4096 dstport 4789 local 192.168.122.10');
	await networks.check(signal());
	t.deepEqual(reasons, ['the interface vxlan.calico also uses it']);
	t.notRegex(await testbed.sh('ip link show'), /caa-probe/v);
});

test("a namespace that is gone, a plain file, and the node's own are told apart", async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	await testbed.sh('touch /run/netns/plain');
	for (const [path, code, message] of [
		[testbed.netnsPath('never'), 'not-found', /does not exist.*HostToContainer/v],
		[testbed.netnsPath('plain'), 'invalid-argument', /plain file.*HostToContainer/v],
		[testbed.ownNetns, 'invalid-argument', /the namespace of the node.*Host-network/v],
	] as const) {
		const error = await t.throwsAsync<AdaptorError>(networks.reserve('sandbox', path, signal()), undefined, path);
		t.is(error.code, code);
		t.regex(error.message, message);
	}
});

test('attaching reports that a namespace is gone only with proof; releasing reports its leftovers', async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	const network = await networks.reserve('sandbox', await testbed.addPod('bridge', 5), signal());
	await networks.attach(network, vm, signal());
	const attaching = async (): Promise<AdaptorError> =>
		t.throwsAsync<AdaptorError>(networks.attach(network, vm, signal()));
	await testbed.sh('mount -t tmpfs tmpfs /run/netns');
	t.is((await attaching()).code, 'failed-precondition');
	const {code, message} = await t.throwsAsync<AdaptorError>(networks.release(network, signal()));
	t.is(code, 'failed-precondition');
	t.regex(message, new RegExp(`A tunnel is left.*pod-5.*${network.vxlanId}.*HostToContainer`, 'v'));
	t.deepEqual(await testbed.boundTunnels(), [], 'all that can be removed is removed');
	t.notRegex(await testbed.sh('ip link show'), /caa-/v);
	await testbed.sh('umount /run/netns');
	await networks.release(network, signal());
	t.is(await testbed.tunnel(network.netnsPath, network.vxlanId), 'none');

	const again = await networks.reserve('sandbox', network.netnsPath, signal());
	await testbed.sh('ip netns del pod-5');
	t.is((await t.throwsAsync<AdaptorError>(networks.attach(again, vm, signal()))).code, 'not-found');
	await testbed.sh('touch /run/netns/pod-5');
	t.is((await t.throwsAsync<AdaptorError>(networks.attach(again, vm, signal()))).code, 'failed-precondition');
	await t.notThrowsAsync(networks.release(again, signal()), 'the kernel tells that the tunnel is gone');
});

test('missing files in the error of a program do not prove that the pod is gone', async t => {
	await using testbed = await NetworkTestbed.create();
	const directory = await mkdtemp(join(tmpdir(), 'caat-network-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	await using networks = testbed.networks({
		spawnServer: {shell: [...testbed.shell, '-c', `PATH=${directory}:$PATH exec sh`]},
	});
	const network = await networks.reserve('sandbox', await testbed.addPod('bridge', 5), signal());
	for (const said of [
		'RTNETLINK answers: No such file or directory',
		'Cannot find device "eth0"',
		'cannot open /run/netns/pod-5: No such file or directory',
		'Error: Cannot find specified qdisc on specified device.',
	]) {
		await writeFile(join(directory, 'tc'), `#!/bin/sh\necho '${said}' >&2\nexit 2\n`, {mode: 0o755});
		t.is(
			(await t.throwsAsync<AdaptorError>(networks.attach(network, vm, signal()))).code,
			'failed-precondition',
			said,
		);
	}
});

for (const [kind, script] of [
	['symbolic link', 'ln -s pod-5 /run/netns/alias'],
	['bind mount', 'touch /run/netns/alias; mount --bind /run/netns/pod-5 /run/netns/alias'],
] as const) {
	test(`a second sandbox by a ${kind} is refused, also after a restart, and the first one is named`, async t => {
		await using testbed = await NetworkTestbed.create();
		const pod = await testbed.addPod('bridge', 5);
		await testbed.sh(script);
		await using before = testbed.networks();
		const network = await before.reserve('one', pod, signal());
		await before.attach(network, vm, signal());
		await using after = testbed.networks();
		await after.attach(network, vm, signal());
		const alias = testbed.netnsPath('alias');
		for (const networks of [before, after]) {
			const error = await t.throwsAsync<AdaptorError>(networks.reserve('two', alias, signal()));
			t.is(error.code, 'already-exists');
			t.is(error.where['sandbox'], 'one');
			t.is(error.where['otherPath'], pod);
			await networks.releaseByNetns('two', alias, signal());
		}

		await after.release({...network, vxlanId: network.vxlanId + 1, netnsPath: alias}, signal());
		t.deepEqual(await testbed.tunnel(pod, network.vxlanId), {remote: vm});
		await after.release({...network, netnsPath: alias}, signal());
		t.is(await testbed.tunnel(pod, network.vxlanId), 'none');
		await t.notThrowsAsync(after.reserve('two', alias, signal()));
	});
}

test('after a restart, a release by an older record does not remove a tunnel with another VNI', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await using before = testbed.networks();
	const {netns, ...old} = await before.reserve('old', pod, signal());
	t.truthy(netns);
	await before.release(old, signal());
	const next = await before.reserve('next', pod, signal());
	await before.attach(next, vm, signal());
	await using after = testbed.networks();
	await after.release(old, signal());
	t.deepEqual(await testbed.tunnel(pod, next.vxlanId), {remote: vm});
});

test('a new pod whose namespace has the inode of one that is gone is not refused', async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	const gone = await networks.reserve('gone', await testbed.addPod('bridge', 5), signal());
	await networks.attach(gone, vm, signal());
	// A namespace with that inode and without the tunnel: the kernel gives an inode out again at once, but to whoever
	// comes first on this machine.
	await testbed.sh(
		'touch /run/netns/next; mount --bind /run/netns/pod-5 /run/netns/next; ip netns del pod-5; ip -n next link del vxlan1; tc -n next qdisc del dev eth0 ingress',
	);
	const next = await networks.reserve('next', testbed.netnsPath('next'), signal());
	t.is(next.netns?.inode, gone.netns?.inode);
	t.not(next.vxlanId, gone.vxlanId);
	await networks.attach(next, '192.168.122.106', signal());
	t.is(await networks.presence(gone, signal()), 'gone');
	await networks.release(gone, signal());
	t.deepEqual(await testbed.tunnel(next.netnsPath, next.vxlanId), {remote: '192.168.122.106'});
	t.deepEqual(await testbed.boundTunnels(), [{address: '192.168.122.106', vni: next.vxlanId}]);
});

test('the next daemon reuses the VNI, but no tunnel that learns addresses or has another port', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await using before = testbed.networks();
	const {vxlanId} = await before.reserve('old', pod, signal());
	await using after = testbed.networks();
	t.is((await after.reserve('new', pod, signal())).vxlanId, vxlanId);
	await using elsewhere = testbed.networks({vxlanPort: 9000});
	await elsewhere.reserve('new', pod, signal());
	t.regex(await testbed.sh('ip -d link show vxlan1', 'pod-5'), /dstport 9000 nolearning/v);

	await testbed.sh('ip link del vxlan1', 'pod-5');
	await testbed.sh(`ip link add vxlan1 netns pod-5 up type vxlan id 555001 remote ${vm} dstport 4789`);
	const {log, reasons} = warnings();
	await using careful = testbed.networks({log});
	await careful.reserve('new', pod, signal());
	t.regex(await testbed.sh('ip -d link show vxlan1', 'pod-5'), /nolearning/v);
	t.deepEqual(reasons, ['different port, VNI or mode']);
});

test('a namespace has one sandbox at a time', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await using networks = testbed.networks();
	const network = await networks.reserve('one', pod, signal());
	const error = await t.throwsAsync<AdaptorError>(networks.reserve('two', pod, signal()));
	t.is(error.code, 'already-exists');
	t.is(await testbed.tunnel(pod, network.vxlanId), 'reserved');
	const raced = await testbed.addPod('bridge', 6);
	const both = await Promise.allSettled(['one', 'two'].map(async id => networks.reserve(id, raced, signal())));
	t.is(both.filter(({status}) => status === 'fulfilled').length, 1);
});

test('a late call for the previous sandbox of a namespace does not change the tunnel of the next one', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await using networks = testbed.networks();
	const last = await networks.reserve('last', pod, signal());
	await networks.attach(last, '192.168.122.104', signal());
	await networks.release(last, signal());
	const next = await networks.reserve('next', pod, signal());
	await networks.attach(next, vm, signal());
	await networks.release(last, signal());
	const error = await t.throwsAsync<AdaptorError>(networks.attach(last, '192.168.122.104', signal()));
	t.is(error.code, 'failed-precondition');
	t.deepEqual(await testbed.tunnel(pod, next.vxlanId), {remote: vm});
});

test('two daemons at once, even with the same guesses, reserve different VNIs', async t => {
	await using testbed = await NetworkTestbed.create();
	const count = 50;
	await testbed.sh(`for n in $(seq ${2 * count}); do ip netns add p$n; echo "link add eth0 netns p$n type bridge"; done >/run/batch; ip -batch /run/batch
		for n in $(seq ${2 * count}); do printf 'link set eth0 up\\naddr add 10.9.0.1/32 dev eth0\\n' | ip -n p$n -batch -; done`);
	const pods = Array.from({length: 2 * count}, (_, n) => testbed.netnsPath(`p${n + 1}`));
	const last = pods.pop() ?? t.fail();
	await using one = testbed.networks({random: guesses(1)});
	await using two = testbed.networks({random: guesses(1)});
	const reserved = await Promise.all(
		pods.map(async (pod, n) => (n % 2 === 0 ? one : two).reserve(`sandbox-${n}`, pod, signal())),
	);
	t.is(new Set(reserved.map(({vxlanId}) => vxlanId)).size, pods.length);
	// Starts where they did.
	await using next = testbed.networks({random: guesses(1)});
	const {vxlanId} = await next.reserve('next', last, signal());
	t.false(reserved.some(network => network.vxlanId === vxlanId));
});

test('an aborted reservation leaves nothing, even if the kernel had already created the device', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	const directory = await mkdtemp(join(tmpdir(), 'caat-network-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	// Tells when the device is made, and then does not end.
	await writeFile(
		join(directory, 'ip'),
		`#!/bin/sh
/sbin/ip "$@" || exit
case $* in "link add vxlan1"*) : >${directory}/made; exec sleep 60;; esac
`,
		{mode: 0o755},
	);
	await using networks = testbed.networks({
		spawnServer: {shell: [...testbed.shell, '-c', `PATH=${directory}:$PATH exec sh`]},
	});
	const abort = new AbortController();
	const made = (async () => {
		for await (const {filename} of watch(directory, {signal: signal()})) {
			if (filename === 'made') {
				return;
			}
		}
	})();
	const reserving = networks.reserve('sandbox', pod, abort.signal);
	await made;
	t.regex(await testbed.sh('ip link show', 'pod-5'), /vxlan1/v);
	const reason = new Error('given up');
	abort.abort(reason);
	t.is(await t.throwsAsync(reserving), reason);
	t.notRegex(await testbed.sh('ip link show', 'pod-5'), /vxlan1/v);
});

test('a reservation whose program is killed after its work leaves nothing', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	const directory = await mkdtemp(join(tmpdir(), 'caat-network-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	await writeFile(
		join(directory, 'ip'),
		`#!/bin/sh
/sbin/ip "$@" || exit
case $* in "link add vxlan1"*) kill -KILL $$;; esac
`,
		{mode: 0o755},
	);
	await using networks = testbed.networks({
		spawnServer: {shell: [...testbed.shell, '-c', `PATH=${directory}:$PATH exec sh`]},
	});
	await t.throwsAsync(networks.reserve('sandbox', pod, signal()), {message: /ended with status 137/v});
	t.notRegex(await testbed.sh('ip link show', 'pod-5'), /vxlan1/v);
});

test("a filter of another program on the pod's interface is an error that says so", async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await testbed.sh('tc qdisc add dev eth0 clsact', 'pod-5');
	await using networks = testbed.networks();
	const network = await networks.reserve('sandbox', pod, signal());
	const error = await t.throwsAsync<AdaptorError>(networks.attach(network, vm, signal()));
	t.is(error.code, 'failed-precondition');
	t.regex(error.message, /clsact.*CNI/v);
	await networks.release(network, signal());
	t.regex(await testbed.sh('tc qdisc show dev eth0', 'pod-5'), /clsact/v, 'it is not ours to remove');
});

test('attaching repairs what somebody removed: the device, the redirection, the table of tunnels', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await using networks = testbed.networks();
	const network = await networks.reserve('sandbox', pod, signal());
	for (const damage of [
		'ip link del vxlan1',
		'ip link del vxlan1; ip link add vxlan1 type vxlan id 7 dstport 4789',
		'tc qdisc del dev eth0 ingress',
	]) {
		await networks.attach(network, vm, signal());
		await testbed.sh(damage, 'pod-5');
		await testbed.sh('nft flush ruleset');
		await networks.attach(network, vm, signal());
		t.deepEqual(await testbed.tunnel(pod, network.vxlanId), {remote: vm}, damage);
	}
});

test('a VM with the address of a previous VM stays bound when the old tunnel is removed', async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	const one = await networks.reserve('one', await testbed.addPod('bridge', 5), signal());
	const two = await networks.reserve('two', await testbed.addPod('bridge', 6), signal());
	await networks.attach(one, vm, signal());
	await networks.attach(two, vm, signal());
	await networks.release(one, signal());
	await networks.release(one, signal());
	t.deepEqual(await testbed.tunnel(two.netnsPath, two.vxlanId), {remote: vm});
	t.is(await testbed.tunnel(one.netnsPath, one.vxlanId), 'none');
});

test('the tunnels of another daemon stay bound, whatever this daemon does', async t => {
	await using testbed = await NetworkTestbed.create();
	await using theirs = testbed.networks();
	const network = await theirs.reserve('theirs', await testbed.addPod('bridge', 5), signal());
	await theirs.attach(network, vm, signal());
	await using ours = testbed.networks();
	await ours.check(signal());
	const other = await ours.reserve('ours', await testbed.addPod('bridge', 6), signal());
	await ours.attach(other, '192.168.122.106', signal());
	await ours.release(other, signal());
	t.deepEqual(await testbed.tunnel(network.netnsPath, network.vxlanId), {remote: vm});
});

test('a tunnel that is known only by its VNI is closed, and other tunnels are not', async t => {
	await using testbed = await NetworkTestbed.create();
	await using dead = testbed.networks();
	const lost = await dead.reserve('lost', await testbed.addPod('bridge', 5), signal());
	await dead.attach(lost, vm, signal());
	await using ours = testbed.networks();
	const other = await ours.reserve('ours', await testbed.addPod('bridge', 6), signal());
	await ours.attach(other, '192.168.122.106', signal());
	t.is((await testbed.boundTunnels()).length, 2);
	await testbed.sh('ip netns del pod-5');
	await ours.releaseByVni(lost.vxlanId, signal());
	await ours.releaseByVni(lost.vxlanId, signal());
	t.deepEqual(await testbed.boundTunnels(), [{address: '192.168.122.106', vni: other.vxlanId}]);
	// Its VNI was free, and is another's now.
	await ours.releaseByVni(other.vxlanId, signal());
	t.deepEqual(await testbed.tunnel(other.netnsPath, other.vxlanId), {remote: '192.168.122.106'});
});

test('if another daemon attached our reservation and died, the tunnel is released with the reservation', async t => {
	await using testbed = await NetworkTestbed.create();
	await using ours = testbed.networks();
	const network = await ours.reserve('one', await testbed.addPod('bridge', 5), signal());
	await using theirs = testbed.networks();
	await theirs.attach(network, vm, signal());
	await ours.release(network, signal());
	t.is(await testbed.tunnel(network.netnsPath, network.vxlanId), 'none');
});

test('an address that is no IPv4 address reaches no script', async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	const network = await networks.reserve('sandbox', await testbed.addPod('bridge', 5), signal());
	for (const address of ['', '192.168.122.5 }; flush ruleset #', 'fe80::1', '192.168.122.05']) {
		t.is(
			(await t.throwsAsync<AdaptorError>(networks.attach(network, address, signal()))).code,
			'invalid-argument',
			address,
		);
	}
});

test('the address of the worker comes from HOST_INTERFACE or from the route to the VMs', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	await using towards = testbed.networks();
	t.is((await towards.reserve('sandbox', pod, signal())).workerNodeIp, '192.168.122.10/24');
	await using chosen = testbed.networks({underlay: {hostInterface: 'cni0'}});
	t.is((await chosen.reserve('sandbox', pod, signal())).workerNodeIp, '10.244.0.1/24');
	await using lost = testbed.networks({underlay: {vmAddress: async () => '203.0.113.1'}});
	const error = await t.throwsAsync<AdaptorError>(lost.reserve('sandbox', pod, signal()));
	t.regex(error.message, /no route to that address.*LIBVIRT_NET/v);
	let asked = 0;
	await using late = testbed.networks({
		underlay: {
			vmAddress: async () => (++asked === 1 ? Promise.reject(new Error('libvirt is away')) : '192.168.122.1'),
		},
	});
	await t.throwsAsync(late.reserve('sandbox', pod, signal()), {message: 'libvirt is away'});
	t.is(
		(await late.reserve('sandbox', pod, signal())).workerNodeIp,
		'192.168.122.10/24',
		'asked again after a failure',
	);
	await testbed.sh('ip addr show dev eth0', 'pod-5');
	t.is(podAddress('bridge', 5), '10.244.0.5');
});

test('inspecting takes one process, reserving one more, attaching three, releasing at most three', async t => {
	await using testbed = await NetworkTestbed.create();
	const directory = await mkdtemp(join(tmpdir(), 'caat-network-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const log = join(directory, 'script');
	await writeFile(log, '');
	// What the shells are given is copied: one `<<'…' &` a process.
	await using networks = testbed.networks({
		spawnServer: {shell: ['sh', '-c', 'tee -a "$0" | "$@"', log, ...testbed.shell], size: 2},
	});
	const first = await networks.reserve('one', await testbed.addPod('bridge', 5), signal());
	await networks.release(first, signal());
	const second = await networks.reserve('two', await testbed.addPod('bridge', 6), signal());
	await networks.attach(second, vm, signal());
	await networks.release(second, signal());
	await networks[Symbol.asyncDispose]();
	const commands = (await readFile(log, 'utf8'))
		.matchAll(/^(.*) <<'[\-0-9a-f]+' &$/gmv)
		.map(([, command = '']) =>
			command
				.replaceAll("'", '')
				.replaceAll(/nsenter --net=\S+ -- /gv, 'nsenter ')
				.replaceAll(/(?<=id |dstport )\d+/gv, 'N')
				.replaceAll(/netns \S+/gv, 'netns P'),
		)
		.toArray();
	t.deepEqual(
		commands.toSorted(),
		[
			// The node's own address, once.
			'ip -d -j -batch -',
			...twice('nsenter ip -d -j -batch -'),
			...twice('ip link add vxlan1 netns P type vxlan id N dstport N nolearning'),
			'nft -f -',
			'nsenter ip link set vxlan1 up alias two type vxlan id N remote 192.168.122.105',
			'nsenter tc -batch -',
			// The first had no VM, for all that this process knows: another daemon may have given it one.
			'nft -j list table ip caa_peerpods',
			'nft -f -',
			...twice('nsenter ip link del vxlan1'),
			...twice('nsenter tc qdisc del dev eth0 ingress'),
		].toSorted(),
	);
});

test('a transaction contains the whole table, and every output format of nft for it is parsed', t => {
	t.is(
		transaction(
			{port: 9000, lowest: 555_000, highest: 620_535},
			{
				add: [
					{address: '192.0.2.1', vni: 555_001},
					{address: '192.0.2.3', vni: 555_003},
				],
				remove: [{address: '192.0.2.2', vni: 555_001}],
				removeLegacy: ['192.0.2.1'],
			},
		),
		[
			'table ip caa_peerpods {',
			'	set vms { type ipv4_addr; }',
			'	set tunnels { typeof ip saddr . @th,96,24; }',
			'	counter strangers { }',
			'	chain out { type filter hook output priority raw; }',
			'	chain pre { type filter hook prerouting priority raw; }',
			'	chain guard { type filter hook input priority 300; }',
			'}',
			'flush chain ip caa_peerpods out',
			'flush chain ip caa_peerpods pre',
			'flush chain ip caa_peerpods guard',
			'add rule ip caa_peerpods out udp dport 9000 ip daddr . @th,96,24 @tunnels notrack',
			'add rule ip caa_peerpods out udp dport 9000 ip daddr @vms notrack',
			'add rule ip caa_peerpods pre udp dport 9000 ip saddr . @th,96,24 @tunnels notrack',
			'add rule ip caa_peerpods pre udp dport 9000 ip saddr @vms notrack',
			'add rule ip caa_peerpods guard udp dport 9000 @th,96,24 555000-620535 ip saddr . @th,96,24 != @tunnels ip saddr != @vms counter name strangers drop',
			'add element ip caa_peerpods tunnels { 192.0.2.1 . 555001, 192.0.2.3 . 555003 }',
			'add element ip caa_peerpods tunnels { 192.0.2.2 . 555001 }',
			'delete element ip caa_peerpods tunnels { 192.0.2.2 . 555001 }',
			'add element ip caa_peerpods vms { 192.0.2.1 }',
			'delete element ip caa_peerpods vms { 192.0.2.1 }',
			'',
		].join('\n'),
	);
	t.deepEqual(
		parseTable(
			JSON.stringify({
				nftables: [
					{metainfo: {}},
					{
						set: {
							name: 'tunnels',
							elem: [
								{concat: ['192.0.2.1', 555_001]},
								{concat: ['192.0.2.2', '0x877f9']},
								{concat: ['192.0.2.3']},
								'192.0.2.4',
							],
						},
					},
					{
						set: {
							name: 'vms',
							elem: [
								'192.0.2.9',
								{elem: {val: '192.0.2.1', comment: 'vni 555001'}},
								{elem: {val: '192.0.2.2', comment: 'other'}},
							],
						},
					},
					{counter: {name: 'strangers', packets: 7}},
				],
			}),
		),
		{
			tunnels: [
				{address: '192.0.2.1', vni: 555_001},
				{address: '192.0.2.2', vni: 555_001},
			],
			legacy: [{address: '192.0.2.1', vni: 555_001}],
			dropped: 7,
		},
	);
	t.deepEqual(parseTable('{"nftables": [{"metainfo": {}}, {"set": {"name": "vms"}}]}'), {
		tunnels: [],
		legacy: [],
		dropped: 0,
	});
});

const twice = (command: string): string[] => [command, command];

/** The same guesses at every run: a linear congruential generator with the constants of Numerical Recipes. */
function guesses(seed: number): () => number {
	let state = seed;
	return () => {
		state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
		return state / 2 ** 32;
	};
}

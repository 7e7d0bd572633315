import test, {type ExecutionContext} from 'ava';
import {createNetworkProbe, type NetworkProbe} from '../../src/network/probe.ts';
import {workerAddress, NetworkTestbed} from './testbed.ts';
import {directoryOf} from '../support/directory.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);

async function probeIn(
	t: ExecutionContext,
	port = 4789,
): Promise<{readonly testbed: NetworkTestbed; readonly probe: NetworkProbe}> {
	const testbed = await NetworkTestbed.create();
	const probe = createNetworkProbe({vxlanPort: port, vxlanMinId: 555_000, spawnServer: {shell: testbed.shell}});
	t.teardown(async () => {
		await probe[Symbol.asyncDispose]();
		await testbed[Symbol.asyncDispose]();
	});
	return {testbed, probe};
}

test('programs are reported with their versions, and the probes leave nothing', async t => {
	const {testbed, probe} = await probeIn(t);
	const {versions} = await probe.observePrograms(signal());
	t.deepEqual(Object.keys(versions), ['ip', 'tc', 'nft', 'nsenter']);
	for (const version of Object.values(versions)) {
		t.regex(version ?? 'missing', /^\d+(\.\d+)+$/);
	}

	await probe.observeVxlanPort(signal());
	t.is(await testbed.sh('nft list ruleset; ip -o link show type vxlan'), '');
});

test('a missing program is reported, and so are the other programs', async t => {
	const {testbed, probe} = await probeIn(t);
	// In the testbed's own mount namespace: where it was is a file that cannot be run.
	await testbed.sh('mount --bind /dev/null "$(command -v nft)"');
	const {ip, nft} = (await probe.observePrograms(signal())).versions;
	t.is(nft, null);
	t.regex(ip ?? '', /^\d/);
});

test('without permission to change the network, the error says so', async t => {
	const {testbed} = await probeIn(t);
	await using bound = createNetworkProbe({
		vxlanPort: 4789,
		vxlanMinId: 555_000,
		spawnServer: {
			shell: [
				...testbed.shell.slice(0, -1),
				'setpriv',
				'--bounding-set=-net_admin',
				'--inh-caps=-net_admin',
				'/bin/sh',
			],
		},
	});
	await t.throwsAsync(bound.observePrograms(signal()), {message: /not permitted.*NET_ADMIN/});
	await using unable = createNetworkProbe({
		vxlanPort: 4789,
		vxlanMinId: 555_000,
		spawnServer: {
			shell: [
				...testbed.shell.slice(0, -1),
				'setpriv',
				'--bounding-set=-sys_admin',
				'--inh-caps=-sys_admin',
				'/bin/sh',
			],
		},
	});
	await t.throwsAsync(unable.observePrograms(signal()), {
		message: /enter a network namespace.*not permitted.*SYS_ADMIN/,
	});
});

test('the probe reports a VXLAN port as free, shared, or in use by an interface or a named program', async t => {
	const {testbed, probe} = await probeIn(t, 9000);
	t.deepEqual(await probe.observeVxlanPort(signal()), {isFree: true, sharing: [], programs: [], freePort: 9001});
	await testbed.sh('ip link add caa-probe up type vxlan id 16777215 dstport 9000 nolearning');
	t.deepEqual(
		await probe.observeVxlanPort(signal()),
		{isFree: true, sharing: [], programs: [], freePort: 9001},
		'another daemon looks at this very moment',
	);
	t.is(await testbed.sh('ip -o link show type vxlan'), '', 'a probe that was killed is removed');
	await testbed.sh('ip link add own up type vxlan id 7 dstport 9000 nolearning');
	t.deepEqual(await probe.observeVxlanPort(signal()), {isFree: true, sharing: ['own'], programs: [], freePort: 9001});
	await testbed.sh('ip link del own; ip link add cni up type vxlan external dstport 9000');
	t.deepEqual(await probe.observeVxlanPort(signal()), {
		isFree: false,
		sharing: ['cni'],
		programs: [],
		freePort: 9001,
	});
	await testbed.sh('ip link del cni');
	const programs = [9000, 9001].map(async port =>
		testbed.sh(`exec nc -u -l 0.0.0.0 ${port}`).catch((error: unknown) => error),
	);
	const listens = testbed
		.sh('until ss -Huln | grep -q :9000 && ss -Huln | grep -q :9001; do sleep 0.05; done')
		.then(() => true);
	t.is(await Promise.race([listens, ...programs]), true);
	const {programs: users, ...taken} = await probe.observeVxlanPort(signal());
	t.deepEqual(taken, {isFree: false, sharing: [], freePort: 9002});
	t.like(users, [{name: 'nc', commandLine: 'nc -u -l 0.0.0.0 9000'}]);
	t.true(users.every(({pid}) => pid > 1));
	await testbed[Symbol.asyncDispose]();
	await Promise.all(programs);
});

test('tunnels can begin at an interface that has an IPv4 address', async t => {
	const {testbed, probe} = await probeIn(t);
	await t.notThrowsAsync(probe.checkHostInterface('virbr0', signal()));
	await t.throwsAsync(probe.checkHostInterface('enc1', signal()), {
		message: /The interface in HOST_INTERFACE does not exist.*virbr0/,
	});
	await testbed.sh('ip addr flush dev virbr0');
	await t.throwsAsync(probe.checkHostInterface('virbr0', signal()), {message: /has no IPv4 address/});
});

test('the route to an address is the entry of the table that leads there', async t => {
	const {testbed, probe} = await probeIn(t);
	t.deepEqual(await probe.observeRoute('192.168.122.77', signal()), {dst: '192.168.122.0/24', dev: 'virbr0'});
	await t.throwsAsync(probe.observeRoute('10.9.8.7', signal()), {message: /no route to that address.*LIBVIRT_NET/});
	await testbed.sh('ip route add default via 192.168.122.1');
	t.deepEqual(await probe.observeRoute('10.9.8.7', signal()), {
		dst: '0.0.0.0/0',
		dev: 'virbr0',
		gateway: '192.168.122.1',
	});
	await testbed.sh('ip route add 10.9.0.0/16 via 192.168.122.5');
	t.deepEqual(await probe.observeRoute('10.9.8.7', signal()), {
		dst: '10.9.0.0/16',
		dev: 'virbr0',
		gateway: '192.168.122.5',
	});
	t.deepEqual(await probe.observeRoute(workerAddress, signal()), {dst: `${workerAddress}/32`, dev: 'virbr0'});
});

test('a probe that is aborted in the middle leaves no device', async t => {
	const directory = await directoryOf(t);
	await using testbed = await NetworkTestbed.create();
	// Slow between the device and its removal.
	await testbed.sh(`cat >${directory}/ip <<'END'
#!/bin/sh
[ "$1" = -batch ] || exec /usr/sbin/ip "$@"
read -r add; /usr/sbin/ip $add; : >${directory}/made; sleep 0.5
read -r del; /usr/sbin/ip $del
END
chmod 755 ${directory}/ip`);
	await using networks = testbed.networks({
		spawnServer: {shell: [...testbed.shell, '-c', `PATH=${directory}:$PATH exec sh`]},
	});
	const giveUp = new AbortController();
	const observing = t.throwsAsync(networks.probe.observeVxlanPort(giveUp.signal), {message: 'enough'});
	await testbed.sh(`until [ -e ${directory}/made ]; do sleep 0.01; done`);
	giveUp.abort(new Error('enough'));
	await observing;
	t.is(await testbed.sh('ip -o link show type vxlan'), '');
});

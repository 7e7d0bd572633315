/**
 * Who can send into a pod's tunnel: its VM and nobody else, whatever happens to the node's daemon and its rules. With
 * real packets.
 */
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {setImmediate as turn} from 'node:timers/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import type {NetworkEvent} from '../../src/network/events.ts';
import type {KernelPodNetworks} from '../../src/network/pod-networks.ts';
import type {PodNetwork} from '../../src/sandbox/ports.ts';
import {earlierVersion, flood, floodCount, intrude, intruderCount, sendFragments} from './intruder.ts';
import {podAddress, vmAddress, workerAddress, NetworkTestbed} from './testbed.ts';

const signal = (): AbortSignal => AbortSignal.timeout(200_000);
const client = {netns: 'client', address: podAddress('bridge', 9)};

/** A node with an ordinary pod that is attacked, and one that attacks. */
async function nodeWithPods(): Promise<NetworkTestbed> {
	const testbed = await NetworkTestbed.create();
	await testbed.addPod('bridge', 9, 'client');
	await testbed.addPod('bridge', 7, 'attacker');
	return testbed;
}

/** A peer pod that runs, and its VM, the addresses of both made of `index`. */
async function runPod(testbed: NetworkTestbed, networks: KernelPodNetworks, index: number): Promise<PodNetwork> {
	const network = await networks.reserve(`sandbox-${index}`, await testbed.addPod('bridge', index), signal());
	await testbed.addVm(index);
	await testbed.configureVm(index, network);
	await networks.attach(network, vmAddress(index), signal());
	return network;
}

const toVm = (index: number) => ({from: 'client', to: `podns-${index}`, address: podAddress('bridge', index)});
const dropped = async (testbed: NetworkTestbed): Promise<number> =>
	Number(/packets (\d+)/v.exec(await testbed.sh('nft list counter ip caa_peerpods strangers'))?.[1]);
const legacy = async (testbed: NetworkTestbed): Promise<string[]> =>
	(await testbed.sh('nft list set ip caa_peerpods vms')).match(/(?:\d+\.){3}\d+/gv) ?? [];

test('packets of a pod, the node or another VM into a tunnel are counted and dropped; its VM may send', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	const victim = await runPod(testbed, networks, 5);
	await runPod(testbed, networks, 6);
	for (const from of ['attacker', 'vm-6', undefined]) {
		const before = await dropped(testbed);
		t.is(await intrude(testbed, {victim, target: client, ...(from !== undefined && {from})}), 0, from);
		t.is((await dropped(testbed)) - before, intruderCount);
	}

	t.is(await intrude(testbed, {victim, target: client, from: 'vm-5'}), intruderCount);
	await testbed.sh('nft flush chain ip caa_peerpods guard');
	t.is(
		await intrude(testbed, {victim, target: client, from: 'attacker'}),
		intruderCount,
		'the guard it was that refused them',
	);
});

test('the guard tells its observer how many packets it has dropped', async t => {
	await using testbed = await nodeWithPods();
	const events: NetworkEvent[] = [];
	await using networks = testbed.networks({observer: {notify: event => events.push(event)}});
	const victim = await runPod(testbed, networks, 5);
	t.is(await intrude(testbed, {victim, target: client, from: 'attacker'}), 0);
	await networks.guard(signal());
	while (events.length === 0) {
		await turn();
	}

	t.deepEqual(events, [{kind: 'tunnels-guarded', dropped: intruderCount}]);
});

test('a tunnel that is only reserved, taken over from an earlier run, or released accepts nothing', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	await testbed.addVm(5);
	const intrusion = {target: client, from: 'vm-5'};
	const victim = await networks.reserve('sandbox', await testbed.addPod('bridge', 5), signal());
	t.is(await intrude(testbed, {...intrusion, victim}), 0);
	await networks.attach(victim, vmAddress(5), signal());
	t.is(await intrude(testbed, {...intrusion, victim}), intruderCount);
	await using next = testbed.networks();
	t.is((await next.reserve('next', victim.netnsPath, signal())).vxlanId, victim.vxlanId);
	t.is(await intrude(testbed, {...intrusion, victim}), 0);
	await next.attach(victim, vmAddress(5), signal());
	t.is(await intrude(testbed, {...intrusion, victim}), intruderCount);
	await next.release(victim, signal());
	t.deepEqual(await testbed.boundTunnels(), []);
	t.is(await intrude(testbed, {...intrusion, victim}), 0);
});

test('after a VM changes its address, packets from the new one are accepted, from the old one not', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	const victim = await runPod(testbed, networks, 5);
	await testbed.addVm(6);
	await networks.attach(victim, vmAddress(6), signal());
	t.is(await intrude(testbed, {victim, target: client, from: 'vm-5'}), 0);
	t.is(await intrude(testbed, {victim, target: client, from: 'vm-6'}), intruderCount);
	t.deepEqual(await testbed.boundTunnels(), [{address: vmAddress(6), vni: victim.vxlanId}]);
});

test('no packet is lost while tunnels come and go, are attached again, and another daemon begins', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	await networks.guard(signal());
	const steady = await runPod(testbed, networks, 5);
	const pod = await testbed.addPod('bridge', 6);
	// Before it is attached, what the VM sends is refused as well.
	const before = await dropped(testbed);
	const {answered, rounds} = await flood(testbed, toVm(5), async () => {
		await networks.attach(steady, vmAddress(5), signal());
		const other = await networks.reserve('other', pod, signal());
		await networks.attach(other, vmAddress(6), signal());
		await networks.attach(other, vmAddress(7), signal());
		await networks.release(other, signal());
		await using successor = testbed.networks();
		successor.adopt('sandbox-5', steady);
		await successor.guard(signal());
		await successor.attach(steady, vmAddress(5), signal());
	});
	t.is(answered, floodCount);
	t.true(rounds > 0);
	t.is(await dropped(testbed), before);
	t.deepEqual(await testbed.boundTunnels(), [{address: vmAddress(5), vni: steady.vxlanId}]);
});

test('after a restart, tunnels stay open before they are attached; those of gone pods are closed', async t => {
	await using testbed = await nodeWithPods();
	await using before = testbed.networks();
	const [known, others, gone] = [
		await runPod(testbed, before, 2),
		await runPod(testbed, before, 3),
		await runPod(testbed, before, 4),
	];
	await testbed.sh(
		`ip netns del pod-4; nft add element ip caa_peerpods tunnels { ${vmAddress(8)} . ${known.vxlanId}, ${vmAddress(8)} . 7 }`,
	);
	await using after = testbed.networks();
	after.adopt('sandbox-2', known);
	await after.guard(signal());
	const bound = (network: PodNetwork, index: number) => ({address: vmAddress(index), vni: network.vxlanId});
	const byAddress = (all: Awaited<ReturnType<NetworkTestbed['boundTunnels']>>) =>
		all.toSorted((one, other) => one.address.localeCompare(other.address));
	t.deepEqual(byAddress(await testbed.boundTunnels()), [bound(known, 2), bound(others, 3)], String(gone.vxlanId));
	for (const index of [2, 3]) {
		t.is(
			(await flood(testbed, toVm(index), async () => after.attach(known, vmAddress(2), signal()))).answered,
			floodCount,
		);
	}
});

test('flushed rules are restored by the next round, and no packet of a tunnel is lost', async t => {
	await using testbed = await nodeWithPods();
	await using before = testbed.networks();
	const network = await runPod(testbed, before, 5);
	const {answered} = await flood(testbed, toVm(5), async () => {
		await testbed.sh('nft flush ruleset');
		await using after = testbed.networks();
		after.adopt('sandbox-5', network);
		await after.guard(signal());
	});
	t.is(answered, floodCount);
	t.is(await dropped(testbed), 0);
	t.is(await intrude(testbed, {victim: network, target: client, from: 'attacker'}), 0);
});

test('tunnels of an earlier version are bound without loss, also while that version runs', async t => {
	await using testbed = await nodeWithPods();
	await using before = testbed.networks();
	const [one, two] = [await runPod(testbed, before, 2), await runPod(testbed, before, 3)];
	await testbed.sh(`nft flush ruleset
${earlierVersion(vmAddress(2), one.vxlanId)}`);
	await using after = testbed.networks();
	after.adopt('sandbox-2', one);
	const {answered} = await flood(testbed, toVm(2), async () => {
		await after.guard(signal());
		await after.attach(one, vmAddress(2), signal());
	});
	t.is(answered, floodCount);
	t.deepEqual(
		[await testbed.boundTunnels(), await legacy(testbed)],
		[[{address: vmAddress(2), vni: one.vxlanId}], []],
	);

	await testbed.sh(earlierVersion(vmAddress(3), two.vxlanId));
	t.is((await flood(testbed, toVm(3), async () => after.attach(one, vmAddress(2), signal()))).answered, floodCount);
	t.is((await flood(testbed, toVm(2))).answered, floodCount);
	t.is(
		await intrude(testbed, {victim: two, target: client, from: 'attacker'}),
		0,
		'strangers are refused all the same',
	);
	after.adopt('sandbox-3', two);
	await after.attach(two, vmAddress(3), signal());
	t.deepEqual(await legacy(testbed), []);
});

test('a stale address of an earlier version is removed when its tunnel is gone', async t => {
	await using testbed = await NetworkTestbed.create();
	await testbed.sh(
		`${earlierVersion(vmAddress(2), 555_002)} ip link add busy type vxlan id 555003 dstport 4789 ${earlierVersion(vmAddress(3), 555_003)}`,
	);
	await using networks = testbed.networks();
	await networks.guard(signal());
	t.deepEqual(await legacy(testbed), [vmAddress(3)]);
});

test('foreign VNIs on a shared port, other ports, and forwarded VXLAN packets are not affected', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	const network = await runPod(testbed, networks, 5);
	const before = await dropped(testbed);
	// Devices of somebody else on the node, and in another pod; what comes out of them is sent on to the client.
	await testbed.sh(`
		ip link add cni type vxlan id 7 dstport 4789; ip link set cni master cni0 up
		ip link add other type vxlan id ${network.vxlanId} dstport 9000; ip link set other master cni0 up`);
	t.is(await intrude(testbed, {victim: {...network, vxlanId: 7}, target: client, from: 'attacker'}), intruderCount);
	t.is(
		await intrude(testbed, {victim: {...network, vxlanPort: 9000}, target: client, from: 'attacker'}),
		intruderCount,
	);
	await testbed.addPod('ptp', 8, 'tenant');
	await testbed.sh(
		`ip link add inside type vxlan id ${network.vxlanId} dstport 4789 nolearning; ip addr add 10.99.0.1/24 dev inside; ip link set inside up`,
		'tenant',
	);
	const inside = {netns: 'tenant', address: '10.99.0.1', dev: 'inside'};
	t.is(
		await intrude(testbed, {
			victim: {...network, workerNodeIp: `${podAddress('ptp', 8)}/32`, podIp: '10.99.0.2/24'},
			target: inside,
			from: 'attacker',
		}),
		intruderCount,
	);
	t.is(await dropped(testbed), before);
});

test('fragments make no difference: large packets of the VM arrive, and those of another host are dropped', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	const victim = await runPod(testbed, networks, 5);
	await testbed.sh('ip link set enc1 mtu 600', 'vm-5');
	await testbed.sh('ip link set vm5 mtu 600; ip route add 192.168.122.105 dev virbr0 mtu 600');
	t.is((await flood(testbed, {...toVm(5), size: 1400})).answered, floodCount);
	t.regex(await testbed.sh('nstat -asz IpReasmOKs'), /IpReasmOKs +[1-9]/v, 'they were cut');
	// In the first fragment there is the UDP header only, and not the VNI.
	for (const firstBytes of [8, 16]) {
		t.is(
			await sendFragments(testbed, {victim, target: client, from: 'vm-5', source: vmAddress(5), firstBytes}),
			intruderCount,
			'fragments are put together',
		);
		t.is(
			await sendFragments(testbed, {
				victim,
				target: client,
				from: 'attacker',
				source: podAddress('bridge', 7),
				firstBytes,
			}),
			0,
		);
	}
});

test('a made-up sender address passes, unless reverse path filtering of the interface is strict', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	const victim = await runPod(testbed, networks, 5);
	const spoofing = {victim, target: client, source: vmAddress(5), firstBytes: 8};
	t.is(
		await sendFragments(testbed, {...spoofing, from: 'attacker'}),
		intruderCount,
		'a raw socket, so CAP_NET_RAW, is what it takes',
	);
	await testbed.sh('sysctl -qw net.ipv4.conf.cni0.rp_filter=1');
	t.is(await sendFragments(testbed, {...spoofing, from: 'attacker'}), 0);
	await testbed.addVm(6);
	t.is(
		await sendFragments(testbed, {...spoofing, from: 'vm-6'}),
		intruderCount,
		'between VMs the KVM host has to filter',
	);
});

test('packets whose port is translated on arrival are guarded as well', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	const victim = await runPod(testbed, networks, 5);
	const before = await dropped(testbed);
	await testbed.sh(
		`nft 'table ip services { chain pre { type nat hook prerouting priority dstnat; udp dport 30000 dnat to ${workerAddress}:4789; }; }'`,
	);
	t.is(await intrude(testbed, {victim: {...victim, vxlanPort: 30_000}, target: client, from: 'attacker'}), 0);
	t.is((await dropped(testbed)) - before, intruderCount);
});

test('if nft does not support the guard, the daemon fails before it serves', async t => {
	await using testbed = await NetworkTestbed.create();
	const directory = await mkdtemp(join(tmpdir(), 'caat-network-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	await using networks = testbed.networks({
		spawnServer: {shell: [...testbed.shell, '-c', `PATH=${directory}:$PATH exec sh`]},
	});
	// Written by another process: one of ours that forks at this moment would have it open, and it would be busy.
	await testbed.sh(`cd ${directory}; printf '#!/bin/sh\\ncat ${directory}/said >&2\\nexit 1\\n' >nft; chmod 755 nft`);
	for (const said of [
		'/dev/stdin:3:16-21: Error: syntax error, unexpected string',
		'Error: Could not process rule: Operation not supported',
	]) {
		await writeFile(join(directory, 'said'), said);
		for (const asking of [networks.check(signal()), networks.probe.observeGuard(signal())]) {
			const error = await t.throwsAsync<AdaptorError>(asking);
			t.is(error.code, 'failed-precondition');
			t.regex(error.message, /bind tunnels to their VMs.*does not support it.*Update nftables/v);
		}
	}
});

test('the probe reports the bound tunnels, the unbound tunnels and the dropped packets', async t => {
	await using testbed = await nodeWithPods();
	await using networks = testbed.networks();
	t.deepEqual(await networks.probe.observeGuard(signal()), {bound: 0, unbound: 0, dropped: 0});
	t.is(await testbed.sh('nft list ruleset'), '', 'asking changes nothing');
	const victim = await runPod(testbed, networks, 5);
	await intrude(testbed, {victim, target: client, from: 'attacker'});
	t.true((await dropped(testbed)) >= intruderCount);
	await testbed.sh(`nft 'add element ip caa_peerpods vms { ${vmAddress(6)} comment "vni 555006" }'`);
	t.deepEqual(await networks.probe.observeGuard(signal()), {bound: 1, unbound: 1, dropped: await dropped(testbed)});
});

/** A daemon that is killed at any point of its work, and the next that finds what it left. */
import {spawn} from 'node:child_process';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import test from 'ava';
import type {PodNetwork} from '../../src/sandbox/ports.ts';
import type {Doomed} from './doomed.ts';
import {podAddress, NetworkTestbed} from './testbed.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);
const program = fileURLToPath(new URL('doomed.ts', import.meta.url));

const lock = '/run/doomed';

/** When to kill: so long after it has told so many of its three steps. */
interface Moment {
	readonly steps: number;
	readonly delayMs: number;
}

/**
 * In the middle of its work. How far it gets depends on the machine: a test that has to see one step's state asks for
 * that step.
 */
function momentsEvery(ms: number): readonly Moment[] {
	return Array.from({length: Math.ceil(34 / ms)}, (_, index) => ({steps: 1, delayMs: index * ms}));
}

/** @returns what it had told before the end; nothing is done any more in its name */
async function killAt(
	{steps, delayMs}: Moment,
	testbed: NetworkTestbed,
	pod: string,
	vm?: string,
): Promise<readonly string[]> {
	const [shell = '', ...command] = testbed.shell.toReversed();
	// Whatever its shells start holds the lock, too: what runs when they lose their daemon comes to its own end.
	const locked = [...command.toReversed(), 'flock', '--shared', '--no-fork', lock, shell];
	const doomed: Doomed = {shell: locked, ownNetns: testbed.ownNetns, pod, ...(vm !== undefined && {vm})};
	const child = spawn(process.execPath, [program, JSON.stringify(doomed)], {stdio: ['ignore', 'pipe', 'inherit']});
	const told: string[] = [];
	for await (const line of createInterface({input: child.stdout})) {
		told.push(line);
		if (told.length === steps) {
			// The staggered moment is the point of the test: no event tells it.
			setTimeout(() => child.kill('SIGKILL'), delayMs);
		}
	}

	await testbed.sh(`flock ${lock} true`);
	return told;
}

test('after a kill at any moment, the next run makes the pod reachable and can release everything', async t => {
	await using testbed = await NetworkTestbed.create();
	await testbed.addPod('bridge', 9, 'client');
	const pod = await testbed.addPod('bridge', 5);
	const vm = await testbed.addVm(5);
	const stages = new Set<number>();
	for (const moment of [...momentsEvery(3), {steps: 2, delayMs: 0}, {steps: 3, delayMs: 0}]) {
		const told = await killAt(moment, testbed, pod, vm);
		stages.add(told.length);
		await using networks = testbed.networks();
		const network = await networks.reserve('next', pod, signal());
		if (told[1] !== undefined) {
			t.is(
				network.vxlanId,
				(JSON.parse(told[1]) as PodNetwork).vxlanId,
				'the VM that runs already goes on with its VNI',
			);
		}

		await networks.attach(network, vm, signal());
		const podns = await testbed.configureVm(5, network);
		await using peer = await testbed.listen(podns);
		t.is(
			await testbed.ask('client', podAddress('bridge', 5), 'whoami'),
			`${podAddress('bridge', 9)}\n`,
			JSON.stringify(moment),
		);
		t.truthy(peer);
		await networks.release(network, signal());
		t.is(await testbed.tunnel(pod, network.vxlanId), 'none');
		t.deepEqual(await testbed.boundTunnels(), []);
		t.notRegex(await testbed.sh('ip link show; tc qdisc show dev eth0', 'pod-5'), /vxlan|ingress/v);
	}

	t.log('killed with', [...stages].toSorted(), 'of 3 steps told');
	t.true(stages.has(3), 'killed when all was done, too');
});

test('after a crash before the attachment, the next run undoes the reservation, known only by its netns', async t => {
	await using testbed = await NetworkTestbed.create();
	const pod = await testbed.addPod('bridge', 5);
	let undone = 0;
	const rounds = [
		...momentsEvery(3).map(moment => ({moment, vm: '192.168.122.105'})),
		{moment: {steps: 2, delayMs: 0}, vm: undefined},
	];
	for (const {moment, vm} of rounds) {
		const [, , attached] = await killAt(moment, testbed, pod, vm);
		const links = await testbed.sh('ip -d -o link show type vxlan', 'pod-5');
		undone += Number(/vxlan1/v.test(links) && !links.includes(' remote '));
		await using networks = testbed.networks();
		await networks.releaseByNetns('doomed', pod, signal());
		const left = await testbed.sh('ip -d -o link show type vxlan', 'pod-5');
		t.true(left === '' || left.includes(' remote '), JSON.stringify(moment));
		t.true(attached === undefined || left !== '', 'what leads to a VM is on record');
		await testbed.sh('ip link del vxlan1 2>/dev/null || :', 'pod-5');
	}

	t.log(undone, 'reservations undone');
	t.true(undone > 0);
});

test('after a kill at any moment and the end of the pod, the next run cleans up from the record', async t => {
	await using testbed = await NetworkTestbed.create();
	for (const [index, moment] of [...momentsEvery(7), {steps: 2, delayMs: 0}].entries()) {
		const pod = await testbed.addPod('bridge', 5 + index);
		const [, record] = await killAt(moment, testbed, pod, '192.168.122.105');
		await testbed.sh(`ip netns del pod-${5 + index}`);
		await using networks = testbed.networks();
		await networks.releaseByNetns('doomed', pod, signal());
		if (record?.startsWith('{') === true) {
			await networks.release(JSON.parse(record) as PodNetwork, signal());
			t.deepEqual(await testbed.boundTunnels(), []);
		}

		t.notRegex(await testbed.sh('ip link show'), /vxlan/v, "in the node's own namespace there never was anything");
	}
});

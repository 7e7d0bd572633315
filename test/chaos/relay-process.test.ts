/**
 * A relay process has the sockets of the shims: daemons are killed, stopped and replaced without an effect on pods. All
 * processes are real.
 */
import test from 'ava';
import {pause} from '../../src/core/lifetime.ts';
import {connect, type TtrpcClient} from '../../src/ttrpc/client.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {newSandboxId, podAnnotations} from '../lab/shim.ts';
import {ChaosNode} from './node.ts';

const {signal} = new AbortController();

interface Pod {
	readonly id: string;
	readonly path: string;
	readonly agentSocket: string;
}

async function create(node: ChaosNode): Promise<Pod> {
	const {name, path} = await node.pod('bridge');
	const id = newSandboxId();
	const annotations = podAnnotations(name, 'chaos');
	return {id, path, agentSocket: await node.shim.createVm({id, annotations, networkNamespacePath: path}, signal)};
}

async function started(node: ChaosNode): Promise<Pod> {
	const pod = await create(node);
	await node.shim.startVm(pod.id, signal);
	return pod;
}

const check = async (client: TtrpcClient): Promise<unknown> =>
	new AgentClient(client).call('Health/Check', {}, signal, 60_000);

test('a daemon is killed, stopped and replaced: no connection of a shim ends, no agent call fails', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000, hasRelayProcess: true});
	const before = await node.inventory();
	const pod = await started(node);
	await using shim = await connect(pod.agentSocket, signal);
	const over = new AbortController();
	let slowestMs = 0;
	let count = 0;
	const traffic = (async () => {
		while (!over.signal.aborted) {
			const startedAt = performance.now();
			await check(shim);
			slowestMs = Math.max(slowestMs, performance.now() - startedAt);
			count++;
		}
	})();
	for (const by of ['SIGKILL', 'SIGTERM', 'SIGKILL', 'SIGTERM'] as const) {
		// Calls that wait while no daemon runs are answered by the next one.
		const other = await create(node);
		const start = node.shim.startVm(other.id, signal);
		await start;
		node.restart(by);
		const stop = node.shim.stopVm(other.id, signal);
		await node.settled();
		await t.notThrowsAsync(stop);
		await node.line(new RegExp(`${pod.id}.*sandbox resumed"`), signal);
	}

	const older = await node.overlap();
	await check(shim);
	t.is(await older.stop(60_000), 0);
	over.abort();
	await traffic;
	t.log(`${count} calls, the slowest ${Math.round(slowestMs)} ms`);
	await node.shim.stopVm(pod.id, signal);
	t.deepEqual(await node.leftOver(before), []);
	t.deepEqual(node.crashes, []);
});

test('a start whose daemon is killed is UNAVAILABLE and says so; the next daemon leaves nothing of it', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000, hasRelayProcess: true});
	const before = await node.inventory();
	const pod = await create(node);
	node.hasLeases = false;
	const start = t.throwsAsync(node.shim.startVm(pod.id, signal), {message: /daemon ended during the call/});
	await node.line(new RegExp(`${pod.id}.*domain started`), signal);
	node.restart('SIGKILL');
	await start;
	await node.shim.stopVm(pod.id, signal);
	t.deepEqual(await node.leftOver(before), []);
});

test('creations, starts and stops that come while there is no daemon wait for the next one', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000, hasRelayProcess: true});
	const before = await node.inventory();
	const first = await create(node);
	const meanwhile = Promise.withResolvers<undefined>();
	node.restart('SIGKILL', async () => meanwhile.promise);
	await node.relayProcess.line(/calls wait for the next one/, signal);
	const creation = create(node);
	const start = node.shim.startVm(first.id, signal);
	const version = node.shim.version(signal);
	await node.relayProcess.line(/a call waits for a daemon.*|"method":"StartVM"/, signal);
	meanwhile.resolve(undefined);
	await t.notThrowsAsync(Promise.all([start, version]));
	const second = await creation;
	await Promise.all([first, second].map(async ({id}) => node.shim.stopVm(id, signal)));
	t.deepEqual(await node.leftOver(before), []);
});

test('when the relay process is killed, its pods can be stopped through the next one, and nothing is left', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000, hasRelayProcess: true});
	const before = await node.inventory();
	const pod = await started(node);
	await using shim = await connect(pod.agentSocket, signal);
	node.relayProcess.kill('SIGKILL');
	await shim.closed;
	await node.line(/the relay process ended; the shims will end its pods/, signal);
	await node.startRelayProcess();
	await node.line(/connected to the relay process.*/, signal);
	await node.shim.version(signal);
	await using again = await served(pod);
	await t.notThrowsAsync(check(again), 'its socket is there again');
	await node.shim.stopVm(pod.id, signal);
	t.deepEqual(await node.leftOver(before), []);
});

/** Connects to the socket of the pod as soon as it exists. */
async function served({agentSocket}: Pod): Promise<TtrpcClient> {
	for (;;) {
		try {
			return await connect(agentSocket, signal);
		} catch {
			await pause(20, signal);
		}
	}
}

test('a second relay process serves new pods; the first one keeps its pods and ends after the last of them', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000, hasRelayProcess: true});
	const before = await node.inventory();
	const old = await started(node);
	const first = node.relayProcess;
	{
		await using shim = await connect(old.agentSocket, signal);
		await node.startRelayProcess();
		await first.line(/a newer relay process serves new pods/, signal);
		await node.line(/"count":0,"msg":"connected to the relay process"/, signal);
		const young = await started(node);
		await t.notThrowsAsync(check(shim), 'through the first one');
		node.restart('SIGKILL');
		await node.settled();
		await node.line(new RegExp(`${old.id}.*sandbox resumed"`), signal);
		await t.notThrowsAsync(check(shim), 'a new daemon knows both');
		// The SIGTERM of an update: it waits for its last pod.
		first.kill('SIGTERM');
		await first.line(/stopping when the last pod has ended/, signal);
		await t.notThrowsAsync(check(shim));
		await node.shim.stopVm(old.id, signal);
		await node.shim.stopVm(young.id, signal);
	}

	t.is(await first.ended, 0);
	t.deepEqual(await node.leftOver(before), []);
});

/**
 * A rolling update: a daemon starts while its predecessor still runs, idle or during a start. Both are separate
 * processes.
 */
import {access} from 'node:fs/promises';
import test from 'ava';
import {connect} from '../../src/ttrpc/client.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {newSandboxId, podAnnotations} from '../lab/shim.ts';
import {ChaosNode} from './node.ts';

const {signal} = new AbortController();

interface Pod {
	readonly id: string;
	readonly agentSocket: string;
}

async function create(node: ChaosNode): Promise<Pod> {
	const {name, path} = await node.pod('bridge');
	const id = newSandboxId();
	const annotations = podAnnotations(name, 'chaos');
	return {id, agentSocket: await node.shim.createVm({id, annotations, networkNamespacePath: path}, signal)};
}

/** Calls like a shim that reconnects. */
async function check({agentSocket}: Pod): Promise<void> {
	await using client = await connect(agentSocket, signal);
	await new AgentClient(client).call('Health/Check', {}, signal, 60_000);
}

const domains = async (node: ChaosNode): Promise<number> =>
	[...(await node.inventory())].filter(name => name.startsWith('domain ')).length;

test('a new daemon takes over all sandboxes; the old one ends without removing anything', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000});
	const before = await node.inventory();
	const [running, created] = [await create(node), await create(node)];
	await node.shim.startVm(running.id, signal);
	const older = await node.overlap();
	await node.line(new RegExp(`${running.id}.*sandbox resumed"`), signal);
	await t.notThrowsAsync(check(running), 'while both run');
	t.is(await domains(node), 1);
	t.is(await older.stop(60_000), 0);
	await t.notThrowsAsync(access(node.socketPath), "the socket is the successor's");
	await t.notThrowsAsync(check(running), 'when the older one has gone');
	await node.shim.startVm(created.id, signal);
	await t.notThrowsAsync(check(created));
	t.is(await domains(node), 2);
	await Promise.all([running, created].map(async ({id}) => node.shim.stopVm(id, signal)));
	t.deepEqual(await node.leftOver(before), []);
});

test('a start completes in the older daemon; the newer daemon serves it after the older one has ended', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000});
	const before = await node.inventory();
	const pod = await create(node);
	node.hasLeases = false;
	const start = node.shim.startVm(pod.id, signal);
	await node.line(new RegExp(`${pod.id}.*domain started`), signal);
	const older = await node.overlap();
	const ended = older.stop(60_000);
	await older.line(/"msg":"stopping"/, signal);
	node.hasLeases = true;
	await t.notThrowsAsync(start, 'the caller has its answer from the older one');
	t.is(await ended, 0);
	const endedAt = performance.now();
	await node.line(new RegExp(`${pod.id}.*sandbox resumed"`), signal);
	t.log(`served again ${Math.round(performance.now() - endedAt)} ms after the older one's end`);
	await t.notThrowsAsync(check(pod));
	t.is(await domains(node), 1);
	await node.shim.stopVm(pod.id, signal);
	t.deepEqual(await node.leftOver(before), []);
});

test('a stop by the newer daemon during a start in the older one leaves nothing and answers the start', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000});
	const before = await node.inventory();
	const pod = await create(node);
	node.hasLeases = false;
	const start = t.throwsAsync(node.shim.startVm(pod.id, signal), {message: /VM/});
	await node.line(new RegExp(`${pod.id}.*domain started`), signal);
	const older = await node.overlap();
	await node.shim.stopVm(pod.id, signal);
	await start;
	t.is(await older.stop(60_000), 0);
	t.deepEqual(await node.leftOver(before), []);
});

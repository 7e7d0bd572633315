/**
 * A daemon that ends again and again, in every way, while a container of a running pod writes without pause and another
 * pod is started or stopped: not one byte is lost or doubled, and no agent call fails. Real sshd, libvirtd and QEMU.
 */
import test from 'ava';
import {connect} from '../../src/ttrpc/client.ts';
import {tellAfterFailure} from '../lab/aftermath.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {hypervisorSocket, startDaemon, startRelayProcess} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {settledInventory, type Inventory} from '../lab/inventory.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import type {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';

const stack = new AsyncDisposableStack();
const {signal} = new AbortController();
const settings = {RELAY_PROCESS: 'required', ORPHAN_GRACE: '10s'};
/** How often the daemon ends. RELAY_PROCESS_ENDS: more of them, by hand. */
const ends = Number(process.env['RELAY_PROCESS_ENDS'] ?? '6');
/** Promised for 1 s, and seen on two processors with a VM that is emulated and daemons that start. */
const slowestCheckMs = 5000;
let lab: Lab;
let relayProcess: Service;
let daemon: Service;
let shim: Shim;
let empty: Inventory;

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
	relayProcess = stack.use(await startRelayProcess(lab, {}, signal));
	daemon = await startDaemon(lab, settings, signal);
	shim = new Shim(lab.outside(hypervisorSocket));
	empty = await lab.inventory();
});

test.after.always(async () => {
	await daemon.stop();
	await stack.disposeAsync();
});

test.afterEach.always('what the daemon and the guests said, when a test has failed', async t =>
	tellAfterFailure(t, daemon, lab),
);

interface Pod {
	readonly id: string;
	readonly agentSocket: string;
	readonly [Symbol.asyncDispose]: () => Promise<void>;
}

let pods = 0;

async function created(): Promise<Pod> {
	const namespace = await lab.podNamespace(`pod-${pods++}`);
	const id = newSandboxId();
	const agentSocket = await shim.createVm(
		{
			id,
			annotations: podAnnotations(`pod-${pods}`, 'e2e'),
			networkNamespacePath: namespace.netnsPath,
		},
		signal,
	);
	return {
		id,
		agentSocket: lab.outside(agentSocket),
		[Symbol.asyncDispose]: async () => namespace[Symbol.asyncDispose](),
	};
}

test('not a byte of a container and no agent call is lost when the daemon ends, in any way', async t => {
	t.timeout(1_800_000);
	await using pod = await created();
	await shim.startVm(pod.id, signal);
	await using output = await connect(pod.agentSocket, signal);
	await using checks = await connect(pod.agentSocket, signal);
	const agent = new AgentClient(output);
	await agent.call('AgentService/CreateSandbox', {sandbox_id: pod.id, hostname: 'pod'}, signal);
	const script = 'i=0; while :; do echo $i; i=$((i+1)); done';
	await agent.call(
		'AgentService/CreateContainer',
		{container_id: 'c', OCI: {Process: {Args: ['sh', '-c', script], Env: ['PATH=/bin'], Cwd: '/'}}},
		signal,
	);
	await agent.call('AgentService/StartContainer', {container_id: 'c'}, signal);
	const over = new AbortController();
	let lines = 0;
	const reading = (async () => {
		let rest = '';
		while (!over.signal.aborted) {
			const {data} = await agent.call('AgentService/ReadStdout', {container_id: 'c', len: 4096}, signal);
			const [last = '', ...whole] = (rest + Buffer.from(data).toString()).split('\n').toReversed();
			rest = last;
			for (const line of whole.toReversed()) {
				t.is(line, String(lines++));
			}
		}
	})();
	let slowestMs = 0;
	const checking = (async () => {
		while (!over.signal.aborted) {
			const startedAt = performance.now();
			await new AgentClient(checks).call('Health/Check', {}, signal, 60_000);
			slowestMs = Math.max(slowestMs, performance.now() - startedAt);
		}
	})();
	for (let end = 0; end < ends; end++) {
		await using other = await created();
		const start = shim.startVm(other.id, signal).then(
			() => 'started',
			() => 'failed',
		);
		await daemon.line(new RegExp(`${other.id}.*"domain started"`), signal);
		// A start is cut off, a stop is cut off, or neither.
		const stop = end % 3 === 1 ? shim.stopVm(other.id, signal) : undefined;
		if (end % 4 === 3) {
			// An update: the next one takes over first.
			const older = daemon;
			daemon = await startDaemon(lab, settings, signal);
			t.is(await older.stop(60_000), 0);
		} else {
			daemon.kill(end % 2 === 0 ? 'SIGKILL' : 'SIGTERM');
			await daemon.ended;
			daemon = await startDaemon(lab, settings, signal);
		}

		await daemon.line(new RegExp(`${pod.id}.*"sandbox resumed"`), signal);
		await start;
		await t.notThrowsAsync(async () => stop);
		await t.notThrowsAsync(shim.stopVm(other.id, signal));
	}

	over.abort();
	await Promise.all([reading, checking]);
	t.log(`${ends} ends of the daemon, ${lines} lines, the slowest check ${Math.round(slowestMs)} ms`);
	t.true(lines > 0);
	t.true(slowestMs < slowestCheckMs, `${slowestMs} ms`);
	await shim.stopVm(pod.id, signal);
	const left = await settledInventory(empty, lab, signal);
	t.deepEqual({...left, sockets: daemonless(left)}, {...empty, sockets: daemonless(empty)});
	t.is(relayProcess.tail.filter(line => line.includes('"level":"error"')).length, 0);
});

/** Each daemon has another one. */
function daemonless({sockets}: Inventory): string[] {
	return sockets.filter(path => !/daemon-[\da-f]{8}\.sock$/v.test(path));
}

/**
 * What goes without a word: a pod whose shim and network namespace vanish under its running VM, and a daemon that took
 * over and is taken back by a rollback, in the middle of traffic. Real sshd, libvirtd and QEMU; one lab for both.
 */
import test, {type ExecutionContext} from 'ava';
import {pause, Scope} from '../../src/core/lifetime.ts';
import {connect, type TtrpcClient} from '../../src/ttrpc/client.ts';
import {tellAfterFailure} from '../lab/aftermath.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {get} from '../lab/clients.ts';
import {hypervisorSocket, startDaemon} from '../lab/daemon.ts';
import {buildGuestImage} from '../lab/image.ts';
import {settledInventory, type Inventory} from '../lab/inventory.ts';
import {startLab, type Lab} from '../lab/lab.ts';
import type {Service} from '../lab/service.ts';
import {newSandboxId, podAnnotations, Shim} from '../lab/shim.ts';
import type {PodNamespace} from '../lab/worker.ts';

const stack = new AsyncDisposableStack();
const {signal} = new AbortController();
/** A reconciliation comes as often, which by default it does every minute. */
const settings = {ORPHAN_GRACE: '5s'};
/** Promised for 5 s, and seen by clients that share two processors with a VM that is emulated. */
const deafLimitMs = 10_000;
let lab: Lab;
let daemon: Service;
let shim: Shim;
let empty: Inventory;

test.before(async t => {
	t.timeout(600_000);
	lab = stack.use(await startLab({image: await buildGuestImage({}, signal), signal}));
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
	readonly namespace: PodNamespace;
	readonly agentSocket: string;
}

async function created(name: string): Promise<Pod> {
	const namespace = await lab.podNamespace(name);
	const id = newSandboxId();
	const agentSocket = lab.outside(
		await shim.createVm(
			{id, annotations: podAnnotations(name, 'e2e'), networkNamespacePath: namespace.netnsPath},
			signal,
		),
	);
	return {id, namespace, agentSocket};
}

async function started(name: string): Promise<Pod> {
	const pod = await created(name);
	await shim.startVm(pod.id, signal);
	return pod;
}

const check = async (client: TtrpcClient): Promise<string> =>
	(await new AgentClient(client).call('Health/Check', {}, signal, 60_000)).status;

/** As a shim that dials again gets it. */
async function checkAnew({agentSocket}: Pod): Promise<string> {
	await using client = await connect(agentSocket, signal);
	return await check(client);
}

/** As a shim that dials again, until it is answered. @returns how long that took */
async function answered(what: string, ask: () => Promise<unknown>): Promise<number> {
	const startedAt = performance.now();
	using scope = new Scope(signal).deadline(120_000, what);
	while (
		!(await ask().then(
			() => true,
			() => false,
		))
	) {
		await pause(20, scope.signal);
	}

	return Math.round(performance.now() - startedAt);
}

test.serial('a pod whose shim and namespace vanish is removed completely, and the log gives the reason', async t => {
	const pod = await started('gone');
	const connection = await connect(pod.agentSocket, signal);
	const waiting = t.throwsAsync(new AgentClient(connection).call('AgentService/GetOOMEvent', {}, signal));
	t.is(await check(connection), 'SERVING');
	// Killed: nobody calls StopVM. Then the runtime removes the pod.
	await connection[Symbol.asyncDispose]();
	await waiting;
	await pod.namespace[Symbol.asyncDispose]();
	const goneAt = performance.now();
	const left = await settledInventory(empty, lab, signal);
	const tookMs = Math.round(performance.now() - goneAt);
	t.deepEqual(left, empty);
	t.log(`everything was gone ${tookMs} ms after the namespace`);
	t.true(tookMs < 90_000, `${tookMs} ms`);
	const told = JSON.parse(await daemon.line(new RegExp(`${pod.id}.*"removing the sandbox"`), signal)) as Record<
		string,
		unknown
	>;
	t.like(told, {
		level: 'warn',
		pod: 'e2e/gone',
		reason: 'its network namespace /run/netns/gone no longer exists',
	});
});

/** Does something again and again. Disposing ends that and waits for what is under way. */
function traffic(
	once: () => Promise<unknown>,
): {readonly done: number; readonly failures: readonly string[]; readonly next: () => Promise<void>} & AsyncDisposable {
	const failures: string[] = [];
	let done = 0;
	const over = new AbortController();
	let progress = Promise.withResolvers<undefined>();
	const loop = (async () => {
		while (!over.signal.aborted) {
			await once().then(
				() => done++,
				(error: unknown) => failures.push(String(error)),
			);
			progress.resolve(undefined);
			progress = Promise.withResolvers<undefined>();
		}
	})();
	return {
		get done() {
			return done;
		},
		failures,
		async next() {
			// What was under way when this was asked for proves nothing.
			for (let count = 0; count < 2; count++) {
				await progress.promise;
			}
		},
		async [Symbol.asyncDispose]() {
			over.abort();
			await loop;
		},
	};
}

for (const by of ['SIGTERM', 'SIGKILL'] as const) {
	test.serial(
		`a successor that is ended by ${by} costs no pod: traffic continues and new calls are answered`,
		async t => {
			t.timeout(600_000);
			const pod = await started(`kept-${by.toLowerCase()}`);
			const neighbour = await lab.podNamespace(`near-${by.toLowerCase()}`);
			await using stream = await connect(pod.agentSocket, signal);
			await serve(t, new AgentClient(stream), pod);
			const page = async (): Promise<void> => {
				const shown = await get(neighbour, `http://${pod.namespace.podIp}/`, signal);
				if (!shown.startsWith(`Hello ${neighbour.podIp}`)) {
					throw new Error(shown);
				}
			};
			{
				await using calls = traffic(async () => check(stream));
				await using pages = traffic(page);
				const successor = await startDaemon(lab, settings, signal);
				await successor.line(new RegExp(`${pod.id}.*"sandbox resumed"`), signal);
				t.is(await checkAnew(pod), 'SERVING', 'by the successor');
				await Promise.all([calls.next(), pages.next()]);
				successor.kill(by);
				await successor.ended;
				const [calledMs, dialledMs] = await Promise.all([
					answered('the hypervisor API to answer', async () => shim.version(signal)),
					answered('the agent to answer', async () => checkAnew(pod)),
				]);
				await Promise.all([calls.next(), pages.next()]);
				t.log(
					`after the successor's end the API was answered within ${calledMs} ms, a new connection to the agent within ${dialledMs} ms; ${calls.done} calls, ${pages.done} pages`,
				);
				t.true(Math.max(calledMs, dialledMs) < deafLimitMs, `${calledMs} ms, ${dialledMs} ms`);
				t.deepEqual([...calls.failures, ...pages.failures], [], 'what ran through the older daemon went on');
			}

			const next = await created(`next-${by.toLowerCase()}`);
			await shim.stopVm(next.id, signal);
			t.is(await check(stream), 'SERVING');
			await shim.stopVm(pod.id, signal);
			t.deepEqual(await settledInventory(empty, lab, signal), empty);
		},
	);
}

/** A web server in the pod's VM. */
async function serve(t: ExecutionContext, agent: AgentClient, {id}: Pod): Promise<void> {
	await agent.call('AgentService/CreateSandbox', {sandbox_id: id, hostname: 'pod'}, signal);
	await agent.call(
		'AgentService/CreateContainer',
		{container_id: 'web', OCI: {Process: {Args: ['/init', 'serve', '80']}}},
		signal,
	);
	await agent.call('AgentService/StartContainer', {container_id: 'web'}, signal);
	const {data} = await agent.call('AgentService/ReadStdout', {container_id: 'web', len: 100}, signal);
	t.true(data.length > 0, 'its first word: it serves');
}

/**
 * A daemon loses all or some of its permissions in the cluster while it works, and gets them back. Afterwards, its
 * state in the cluster is soon correct, and no pod was affected. Time and permissions are random, from a fixed seed and
 * from the current time.
 */
import test, {type ExecutionContext} from 'ava';
import {extendedResource} from '../../src/kubernetes/node-capacity.ts';
import {textAt} from '../../src/core/json.ts';
import {Scope} from '../../src/core/lifetime.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {newSandboxId, podAnnotations} from '../lab/shim.ts';
import {peerPodConfigKind, peerPodKind, TestApiServer, type ApiCall} from '../support/api-server.ts';
import {ChaosNode, type Inventory} from './node.ts';
import {randomFrom} from './script.ts';

const {signal} = new AbortController();
const limit = '5';
const namespace = 'chaos';
/** The documented limit for all state in the cluster. */
const convergeMs = 60_000;

/**
 * In this order. At the end, the first pod is stopped; the object of the second one is deleted, and its shim makes no
 * call.
 */
const steps = ['create', 'start', 'run', 'restart', 'end'] as const;
type Step = (typeof steps)[number];
const losses = ['everything', 'peerpods', 'nodes', 'pods'] as const;

interface RightsScript {
	readonly lost: (typeof losses)[number];
	/** The permissions are lost before the first of these steps, and restored after the last. */
	readonly first: Step;
	readonly last: Step;
	/** Whether the runtime passes the UIDs of pods, like CRI-O. */
	readonly knowsUids: boolean;
	/** Whether the capacity of the node is removed in the meantime, as by a kubelet that restarts. */
	readonly losesCapacity: boolean;
}

function randomRights(random: () => number): RightsScript {
	const oneOf = <T>(values: readonly T[]): T => values[Math.floor(random() * values.length)] as T;
	const first = oneOf(steps);
	return {
		lost: oneOf(losses),
		first,
		last: oneOf(steps.slice(steps.indexOf(first))),
		knowsUids: random() < 0.5,
		losesCapacity: random() < 0.5,
	};
}

const isLost = ({lost}: RightsScript, {plural}: ApiCall): boolean => lost === 'everything' || plural === lost;

interface Pod {
	readonly name: string;
	readonly id: string;
	readonly agentSocket: string;
}

async function createPod(node: ChaosNode, api: TestApiServer, knowsUids: boolean): Promise<Pod> {
	const {name, path} = await node.pod('bridge');
	const {metadata} = api.put('pods', {metadata: {name, namespace}, spec: {serviceAccountName: 'default'}});
	const id = newSandboxId();
	// The name of a sandbox in CRI-O.
	const annotations = podAnnotations(knowsUids ? `k8s_${name}_${namespace}_${metadata.uid}_0` : name, namespace);
	return {name, id, agentSocket: await node.shim.createVm({id, annotations, networkNamespacePath: path}, signal)};
}

async function check({agentSocket}: Pod): Promise<void> {
	await using client = await connect(agentSocket, signal);
	await new AgentClient(client).call('Health/Check', {}, signal, 60_000);
}

const capacityIn = (api: TestApiServer): string | undefined =>
	textAt(api.find('nodes', 'worker-0'), 'status', 'capacity', extendedResource);
const announcedIn = (api: TestApiServer): string[] =>
	api
		.list('peerpods')
		.map(({metadata}) => metadata.name)
		.sort();

/** Waits until exactly these VMs are registered. */
async function converged(t: ExecutionContext, api: TestApiServer, pods: readonly Pod[], when: string): Promise<void> {
	const startedAt = performance.now();
	const wanted = pods
		.map(({name, id}) => `podvm-${name}-${id.slice(0, 8)}`)
		.sort()
		.join();
	try {
		await api.until(() => capacityIn(api) === limit && announcedIn(api).join() === wanted);
	} catch {
		// Reported below.
	}

	const tookMs = Math.round(performance.now() - startedAt);
	t.is(announcedIn(api).join(), wanted, when);
	t.is(capacityIn(api), limit, when);
	t.true(tookMs < convergeMs, `${when}: ${tookMs} ms`);
}

async function nothingLeft(t: ExecutionContext, node: ChaosNode, before: Inventory): Promise<void> {
	using scope = new Scope(signal).deadline(90_000, 'everything to be gone');
	let left = [...(await node.inventory()).difference(before)];
	while (left.length > 0 && !scope.signal.aborted) {
		left = [...(await node.inventory()).difference(before)];
	}

	t.deepEqual(left, []);
}

/** @returns the number of refused calls */
async function play(t: ExecutionContext, script: RightsScript, node: ChaosNode, api: TestApiServer): Promise<number> {
	const before = await node.inventory();
	const title = JSON.stringify(script);
	let loss: Disposable | undefined;
	let refused = 0;
	let pods: readonly Pod[] = [];
	const work: Readonly<Record<Step, () => Promise<void>>> = {
		async create() {
			pods = [await createPod(node, api, script.knowsUids), await createPod(node, api, script.knowsUids)];
		},
		async start() {
			await Promise.all(pods.map(async ({id}) => node.shim.startVm(id, signal)));
		},
		async run() {
			await Promise.all(pods.map(check));
		},
		async restart() {
			node.restart('SIGKILL');
			await node.settled();
			for (const {id} of pods) {
				await node.line(new RegExp(`${id}.*sandbox resumed"`), signal);
			}

			await Promise.all(pods.map(check));
		},
		async end() {
			const [stopped, deleted] = pods as readonly [Pod, Pod];
			await node.shim.stopVm(stopped.id, signal);
			api.delete('pods', stopped.name, namespace);
			api.delete('pods', deleted.name, namespace);
		},
	};
	for (const step of steps) {
		if (step === script.first) {
			loss = api.fault(call => {
				if (!isLost(script, call)) {
					return undefined;
				}

				refused++;
				return 'forbidden';
			});
			api.endWatches('end');
			if (script.losesCapacity) {
				api.put('nodes', {metadata: {name: 'worker-0'}, status: {capacity: {[extendedResource]: '0'}}});
			}
		}

		await work[step]();
		if (step === script.last) {
			if (step !== 'create' && step !== 'end') {
				// A failed query is no reason to end a pod.
				await Promise.all(pods.map(check));
			}

			// A loss without a refused call proves nothing. Calls that the steps do not cause are repeated
			// periodically.
			await api.until(() => refused > 0);
			loss?.[Symbol.dispose]();
			if (step === 'start' || step === 'run' || step === 'restart') {
				await converged(t, api, pods, `${title}: with the rights back, before the end`);
			}
		}
	}

	await converged(t, api, [], `${title}: at the end`);
	await nothingLeft(t, node, before);
	return refused;
}

/** The first rounds cover each kind of loss, and together each step. */
const seeds = [2, 4, 5, 6, 9, 14, Date.now() % 1_000_000];

test('a minute after lost permissions are restored, VMs and capacity are registered and no pod is lost', async t => {
	t.timeout(900_000);
	await using api = await TestApiServer.start();
	api.define(peerPodKind, peerPodConfigKind);
	api.put('namespaces', {metadata: {name: namespace}});
	api.put('serviceaccounts', {metadata: {name: 'default', namespace}});
	api.put('daemonsets', {metadata: {name: 'daemons', namespace: api.namespace}});
	api.put('nodes', {metadata: {name: 'worker-0'}});
	await using node = await ChaosNode.start({
		patienceMs: 60_000,
		orphanGraceMs: 2000,
		api,
		environment: {PEERPODS_LIMIT_PER_NODE: limit, DAEMONSET_NAME: 'daemons'},
	});
	for (const seed of seeds) {
		const script = randomRights(randomFrom(seed * 10_000));
		const startedAt = performance.now();
		const refused = await play(t, script, node, api);
		t.log(
			`seed ${seed}: ${Math.round(performance.now() - startedAt)} ms, ${refused} refusals, ${JSON.stringify(script)}`,
		);
	}

	t.deepEqual(node.crashes, []);
});

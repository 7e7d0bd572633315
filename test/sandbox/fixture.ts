/**
 * A registry over in-memory ports, with a hook before and after every call of a port: to fail it, to hold it, to count
 * it.
 */
import type {ExecutionContext} from 'ava';
import {parseInitdata} from '../../src/initdata/initdata.ts';
import {SandboxRegistry} from '../../src/sandbox/registry.ts';
import type {SandboxRecords} from '../../src/sandbox/records.ts';
import {allOf, noObserver, type Observer} from '../../src/core/observer.ts';
import type {AdaptorEvent} from '../../src/observers/event.ts';
import {logObserver} from '../../src/observers/log-observer.ts';
import {podEventObserver} from '../../src/observers/pod-events.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {KeyedMutex} from '../../src/core/concurrency/keyed-mutex.ts';
import {Semaphore} from '../../src/core/concurrency/semaphore.ts';
import type {AgentRelays, OtherDaemons, PodNetworks, PodVms} from '../../src/sandbox/ports.ts';
import {InMemoryAgentRelays} from '../support/in-memory-agent-relays.ts';
import {InMemoryCluster} from '../support/in-memory-cluster.ts';
import {InMemoryPodNetworks} from '../support/in-memory-pod-networks.ts';
import {InMemoryKvmHost, InMemoryPodVms} from '../support/in-memory-pod-vms.ts';
import {InMemorySandboxRecords} from '../support/in-memory-sandbox-records.ts';
import {recordingLog} from '../support/recording-log.ts';

export type PortCall =
	| 'networks.reserve'
	| 'networks.releaseByNetns'
	| 'networks.attach'
	| 'networks.release'
	| 'networks.forget'
	| 'relays.issue'
	| 'relays.open'
	| 'podVms.start'
	| 'podVms.bindAddress'
	| 'podVms.delete'
	| 'records.write'
	| 'records.remove';

/** May wait, or throw; the signal is the call's own. */
export type Hook = (call: PortCall, signal: AbortSignal) => Promise<void> | void;

export interface Fixture {
	readonly registry: SandboxRegistry;
	readonly podVms: InMemoryPodVms;
	readonly networks: InMemoryPodNetworks;
	readonly relays: InMemoryAgentRelays;
	readonly records: InMemorySandboxRecords;
	readonly cluster: InMemoryCluster;
	readonly log: ReturnType<typeof recordingLog>;
	/**
	 * The next daemon on the same node and host, which has read the records. This one is not closed: it may have been
	 * killed, or still be at it.
	 */
	readonly restart: (options?: FixtureOptions) => Promise<Fixture>;
	/** VMs of the same cluster and node as the daemon of another PODS_DIR makes them. */
	readonly otherPodsDir: () => InMemoryPodVms;
	/** What it knows of others on the same node. */
	readonly others: OtherDaemons;
	/**
	 * As SIGKILL: from now on nothing that this daemon does has an effect, and nobody is answered. Disposing buries it.
	 */
	readonly kill: () => AsyncDisposable;
	/** Everything that exists anywhere, by name: nothing left means an empty list. */
	readonly left: () => Promise<string[]>;
}

export const never = new AbortController().signal;

export interface FixtureOptions {
	readonly before?: Hook;
	readonly after?: Hook;
	readonly createTimeoutMs?: number;
	readonly startTimeoutMs?: number;
	readonly agentTimeoutMs?: number;
	readonly cleanupTimeoutMs?: number;
	readonly maxStarts?: number;
	readonly maxSandboxes?: () => number | undefined;
	readonly orphanGraceMs?: number;
	/** A predecessor counts as alive whatever became of it, as one that hangs. */
	readonly hasHungPredecessor?: boolean;
	readonly reconcileIntervalMs?: number;
	readonly listTimeoutMs?: number;
	readonly bootTurnMs?: number;
	readonly endedGraceMs?: number;
	readonly rollBackPatienceMs?: number;
	readonly reachReportMs?: number;
	readonly startReportsMs?: readonly number[];
	readonly closeTimeoutMs?: number;
	/** Beside the log and the events of pods. */
	readonly observer?: Observer<AdaptorEvent>;
}

/** What outlives a daemon. */
interface Node {
	readonly host: InMemoryKvmHost;
	readonly networks: InMemoryPodNetworks;
	readonly records: InMemorySandboxRecords;
	readonly cluster: InMemoryCluster;
	/** Whether each is at work, in the order in which they began. */
	readonly daemons: DaemonLife[];
}

interface DaemonLife {
	isAlive: boolean;
	/** Resolves when it is not. */
	readonly ended: PromiseWithResolvers<undefined>;
}

export function fixture(t: ExecutionContext, options: FixtureOptions = {}): Fixture {
	const made = fixtureOn(
		{
			host: new InMemoryKvmHost(),
			networks: new InMemoryPodNetworks(),
			records: new InMemorySandboxRecords(),
			cluster: new InMemoryCluster(),
			daemons: [],
		},
		t,
		options,
	);
	void made.registry.recover(Promise.resolve(made.others));
	return made;
}

function fixtureOn(node: Node, t: ExecutionContext, options: FixtureOptions): Fixture {
	const {
		before = () => undefined,
		after = () => undefined,
		createTimeoutMs = 60_000,
		startTimeoutMs = 60_000,
		agentTimeoutMs = 60_000,
		cleanupTimeoutMs = 60_000,
	} = options;
	const {networks, records, cluster} = node;
	const podVms = new InMemoryPodVms({host: node.host});
	const relays = new InMemoryAgentRelays({anyAddress: true});
	const log = recordingLog();
	let isKilled = false;
	const life: DaemonLife = {isAlive: true, ended: Promise.withResolvers<undefined>()};
	const predecessors = [...node.daemons];
	node.daemons.push(life);
	const endLife = (): void => {
		life.isAlive = false;
		life.ended.resolve(undefined);
	};
	const others: OtherDaemons = {
		hasPredecessor: () => options.hasHungPredecessor === true || predecessors.some(({isAlive}) => isAlive),
		async predecessorsEnded(signal) {
			await abortable(
				Promise.all([
					...predecessors.map(async ({ended}) => ended.promise),
					...(options.hasHungPredecessor === true ? [Promise.withResolvers<never>().promise] : []),
				]),
				signal,
			);
		},
		hasSuccessor: async () => node.daemons.slice(node.daemons.indexOf(life) + 1).some(({isAlive}) => isAlive),
	};
	const buried = new AbortController();
	const unlessKilled = async (): Promise<void> =>
		isKilled ? abortable(Promise.withResolvers<never>().promise, buried.signal) : undefined;
	const hooked = async <T>(call: PortCall, signal: AbortSignal, work: () => Promise<T>): Promise<T> => {
		await unlessKilled();
		await abortable((async () => before(call, signal))(), buried.signal);
		await unlessKilled();
		const result = await work();
		await unlessKilled();
		await abortable((async () => after(call, signal))(), buried.signal);
		await unlessKilled();
		return result;
	};

	const hookedNetworks: PodNetworks = {
		reserve: async (id, netns, signal) =>
			hooked('networks.reserve', signal, async () => networks.reserve(id, netns, signal)),
		releaseByNetns: async (id, netns, signal) =>
			hooked('networks.releaseByNetns', signal, async () => networks.releaseByNetns(id, netns, signal)),
		presence: async (network, signal) => networks.presence(network, signal),
		identify: async (network, signal) => networks.identify(network, signal),
		attach: async (network, address, signal) =>
			hooked('networks.attach', signal, async () => networks.attach(network, address, signal)),
		adopt: () => networks.adopt(),
		detach: async (network, signal) => networks.detach(network, signal),
		release: async (network, signal) =>
			hooked('networks.release', signal, async () => networks.release(network, signal)),
		releaseByVni: async (vni, signal) =>
			hooked('networks.forget', signal, async () => networks.releaseByVni(vni, signal)),
	};
	const hookedVms: PodVms = {
		start: async (spec, signal) => hooked('podVms.start', signal, async () => podVms.start(spec, signal)),
		addresses: (vm, signal) => podVms.addresses(vm, signal),
		bindAddress: async (vm, address, signal) =>
			hooked('podVms.bindAddress', signal, async () => podVms.bindAddress(vm, address, signal)),
		consoleTail: vm => podVms.consoleTail(vm),
		ended: async (vm, signal) => {
			const end = await podVms.ended(vm, signal);
			await unlessKilled();
			return end;
		},
		delete: async (id, signal) => hooked('podVms.delete', signal, async () => podVms.delete(id, signal)),
		list: async signal => podVms.list(signal),
	};
	const hookedRelays: AgentRelays = {
		issue: async (name, signal) => hooked('relays.issue', signal, async () => relays.issue(name, signal)),
		open: async (target, addresses, signal) =>
			hooked('relays.open', signal, async () => relays.open(target, addresses, signal)),
		assertServable: path => relays.assertServable(path),
		discard: async path => relays.discard(path),
	};
	const hookedRecords: SandboxRecords = {
		write: async record => hooked('records.write', never, async () => records.write(record)),
		remove: async id => hooked('records.remove', never, async () => records.remove(id)),
		read: async id => records.read(id),
		readAll: async () => records.readAll(),
	};
	const registry = new SandboxRegistry({
		podVms: hookedVms,
		networks: hookedNetworks,
		relays: hookedRelays,
		records: hookedRecords,
		cluster,
		starts: new Semaphore(options.maxStarts ?? 10),
		mutex: new KeyedMutex(),
		...(options.endedGraceMs === undefined ? {} : {endedGraceMs: options.endedGraceMs}),
		...(options.rollBackPatienceMs === undefined ? {} : {rollBackPatienceMs: options.rollBackPatienceMs}),
		...(options.reachReportMs === undefined ? {} : {reachReportMs: options.reachReportMs}),
		...(options.startReportsMs === undefined ? {} : {startReportsMs: options.startReportsMs}),
		...(options.listTimeoutMs === undefined ? {} : {listTimeoutMs: options.listTimeoutMs}),
		...(options.bootTurnMs === undefined ? {} : {bootTurnMs: options.bootTurnMs}),
		maxSandboxes: options.maxSandboxes ?? (() => undefined),
		orphanGraceMs: options.orphanGraceMs ?? 60_000,
		reconcileIntervalMs: options.reconcileIntervalMs ?? 2,
		policy: {
			sizes: {vcpus: 2, minVcpus: 1, maxVcpus: 8, memoryMib: 2048, minMemoryMib: 512, maxMemoryMib: 8192},
			initdata: {parse: parseInitdata},
		},
		hasScratchSpace: false,
		closeTimeoutMs: options.closeTimeoutMs ?? 60_000,
		podsDir: '/run/pods',
		createTimeoutMs,
		startTimeoutMs,
		agentTimeoutMs,
		cleanupTimeoutMs,
		removalRetryMs: [1, 4],
		observer: allOf<AdaptorEvent>(
			[logObserver(log), podEventObserver(cluster), options.observer ?? noObserver],
			error => {
				throw error;
			},
		),
	});
	const dispose = registry[Symbol.asyncDispose].bind(registry);
	registry[Symbol.asyncDispose] = async () => {
		await dispose();
		endLife();
	};
	t.teardown(async () => {
		buried.abort(new Error('killed'));
		await registry[Symbol.asyncDispose]();
	});
	return {
		registry,
		podVms,
		networks,
		relays,
		records,
		cluster,
		log,
		others,
		otherPodsDir: () => new InMemoryPodVms({host: node.host, podsDir: '/elsewhere/pods'}),
		kill() {
			isKilled = true;
			endLife();
			return {
				async [Symbol.asyncDispose]() {
					buried.abort(new Error('killed'));
					await registry[Symbol.asyncDispose]();
				},
			};
		},
		async restart(next = {}) {
			const successor = fixtureOn(node, t, next);
			await successor.registry.recover(Promise.resolve(successor.others));
			return successor;
		},
		async left() {
			return [
				...(await podVms.list(never)).map(({name}) => `VM ${name}`),
				...[...networks.tunnels.keys()].map(vni => `VNI ${vni}`),
				...[...relays.served.keys()].map(path => `socket ${path}`),
				...(await records.readAll()).map(({id}) => `record ${id}`),
				...[...cluster.claims.keys()].map(name => `claim ${name}`),
			];
		},
	};
}

/** Resolves when the daemon has said so. */
export async function logged({log}: Fixture, message: string): Promise<void> {
	while (!log.lines.some(line => line.message === message)) {
		await new Promise(resolve => {
			setImmediate(resolve);
		});
	}
}

export function pod(id: string, name = 'web'): {id: string; annotations: Record<string, string>; netnsPath: string} {
	return {
		id,
		annotations: {'io.kubernetes.cri.sandbox-name': name, 'io.kubernetes.cri.sandbox-namespace': 'shop'},
		netnsPath: `/run/netns/${id}`,
	};
}

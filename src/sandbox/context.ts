/** What every sandbox of a daemon shares: the ports, the administrator's policy, and how long things may take. */
import type {KeyedMutex} from '../core/concurrency/keyed-mutex.ts';
import type {Semaphore} from '../core/concurrency/semaphore.ts';
import type {Observer} from '../core/observer.ts';
import type {ReconcileEvent, SandboxEvent} from './events.ts';
import type {PodPolicy} from './pod-request.ts';
import type {AgentRelays, Cluster, PodNetworks, PodVms} from './ports.ts';
import type {SandboxRecords} from './records.ts';

export interface SandboxContext {
	readonly podVms: PodVms;
	readonly networks: PodNetworks;
	readonly relays: AgentRelays;
	readonly cluster: Cluster;
	readonly records: SandboxRecords;
	/** Starts that load the host, of all sandboxes; the pods' namespaces take turns. */
	readonly starts: Semaphore;
	/** How long a VM that runs keeps its turn while it boots. */
	readonly bootTurnMs?: number;
	/** By sandbox id: the tasks of a sandbox run one at a time. */
	readonly mutex: KeyedMutex;
	readonly policy: PodPolicy;
	/** Every VM is asked to set up scratch space. */
	readonly hasScratchSpace: boolean;
	/** Absolute directory; the agent's socket of a sandbox is `<podsDir>/<id>/agent.ttrpc`. */
	readonly podsDir: string;
	/** Budget of a creation, which only looks at this node. */
	readonly createTimeoutMs: number;
	/** Budget of a whole start. */
	readonly startTimeoutMs: number;
	/** Of it, how long a VM that runs may take until its forwarder answers. */
	readonly agentTimeoutMs: number;
	/** Budget of one attempt to roll back or to remove; independent of any caller's. */
	readonly cleanupTimeoutMs: number;
	/** How long the caller of a start whose time is up waits for it to be rolled back. */
	readonly rollBackPatienceMs?: number;
	/** How long the VM of an earlier run may take to answer until the log says that it does not. */
	readonly reachReportMs?: number;
	/** Pauses between attempts to remove what could not be removed: the first, and the longest. */
	readonly removalRetryMs: readonly [first: number, longest: number];
	readonly observer: Observer<SandboxEvent | ReconcileEvent>;
}

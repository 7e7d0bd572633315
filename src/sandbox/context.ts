/** What all sandboxes of a daemon share: the ports, the policy of the administrator, and the time limits. */
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
	/** Limits concurrent starts; the namespaces of the pods take turns. */
	readonly starts: Semaphore;
	/** How long a booting VM keeps its start permit. */
	readonly bootTurnMs?: number;
	/** Keyed by sandbox id: the tasks of a sandbox run one at a time. */
	readonly mutex: KeyedMutex;
	readonly policy: PodPolicy;
	/** Every VM is asked to set up scratch space. */
	readonly hasScratchSpace: boolean;
	/** Absolute directory; the agent socket of a sandbox is `<podsDir>/<id>/agent.ttrpc`. */
	readonly podsDir: string;
	/** Time limit of a creation, which only uses this node. */
	readonly createTimeoutMs: number;
	/** Time limit of a whole start. */
	readonly startTimeoutMs: number;
	/** Time limit, within a start, until the forwarder of a running VM answers. */
	readonly agentTimeoutMs: number;
	/** Time limit of one attempt to roll back or remove, independent of the caller. */
	readonly cleanupTimeoutMs: number;
	/** How long the caller of a start that timed out waits for the roll-back. */
	readonly rollBackPatienceMs?: number;
	/** A start that takes longer than these times is reported each time. */
	readonly startReportsMs?: readonly number[];
	/** If the VM of an earlier run does not answer for this time, the log says so. */
	readonly reachReportMs?: number;
	/** Pauses between attempts to remove leftovers: the first and the longest. */
	readonly removalRetryMs: readonly [first: number, longest: number];
	readonly observer: Observer<SandboxEvent | ReconcileEvent>;
}

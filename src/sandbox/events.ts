/** What happens to sandboxes, as the domain tells its observer. */
import type {AdaptorError} from '../core/errors.ts';
import type {PodIdentity, SandboxId} from './ports.ts';

/** Names of the sandbox that an event is about, as far as they are known by then. */
export interface SandboxNames {
	readonly sandboxId: SandboxId;
	readonly pod?: PodIdentity | undefined;
	readonly instanceName?: string | undefined;
}

/** An attempt that failed and is made again. The first is number 1. */
interface FailedAttempt {
	readonly error: unknown;
	readonly attempt: number;
	readonly retryInMs?: number;
}

/** Where a VM that runs is found. */
export interface RunningVm {
	readonly vmId: string;
	readonly address: string;
	readonly mac: string;
	readonly vni: number;
}

/** What a pod gets, and why so much. */
export interface SandboxSize {
	readonly vcpus: number;
	readonly vcpusFrom: string;
	readonly memoryMib: number;
	readonly memoryFrom: string;
}

/** The life of one sandbox. */
export type SandboxEvent = {readonly sandbox: SandboxNames} & (
	| {
			readonly kind: 'sandbox-created';
			readonly size: SandboxSize;
			/** Digest of the initdata. */
			readonly initdata: string | undefined;
			readonly vni: number;
			readonly netns: string;
	  }
	| {readonly kind: 'vm-started'; readonly vm: RunningVm; readonly stagesMs: Readonly<Record<string, number>>}
	/** In words: what the VM has, instead of what its pod asked for. */
	| {readonly kind: 'size-limited'; readonly limited: readonly string[]}
	| {readonly kind: 'start-failed'; readonly error: AdaptorError}
	| {readonly kind: 'vm-ended'; readonly error: AdaptorError; readonly vmId: string}
	| {readonly kind: 'sandbox-rolled-back'; readonly error: AdaptorError}
	| ({readonly kind: 'roll-back-failed'} & Pick<FailedAttempt, 'error'>)
	| {readonly kind: 'sandbox-resumed'; readonly vm: RunningVm}
	| {readonly kind: 'created-sandbox-resumed'; readonly vni: number}
	| ({readonly kind: 'resumption-failed'} & FailedAttempt)
	/** The daemon that took over removes it, or has. */
	| {readonly kind: 'sandbox-handed-over'; readonly reason: string; readonly vmId: string}
	/** A newer sandbox of the same pod has taken its place. */
	| {readonly kind: 'sandbox-superseded'; readonly by: SandboxId}
	| {readonly kind: 'superseded-sandbox-not-removed'; readonly error: unknown}
	| {
			readonly kind: 'sandbox-removed';
			readonly durationMs: number;
			/** False for an id of which only a call has told: there may have been nothing. */
			readonly wasKnown: boolean;
	  }
	| ({readonly kind: 'removal-failed'} & FailedAttempt)
	/** A restart would not resume this removal. */
	| {readonly kind: 'removal-not-recorded'; readonly error: unknown}
	| {readonly kind: 'relay-not-closed'; readonly error: unknown}
	/** Until the next reconcile round. */
	| {readonly kind: 'vm-not-watched'; readonly error: unknown}
);

/** What the reconcile loop finds and decides. */
export type ReconcileEvent =
	| {readonly kind: 'reconcile-failed'; readonly error: unknown}
	| {readonly kind: 'vms-not-listed'; readonly error: unknown; readonly isNews: boolean}
	| {
			readonly kind: 'removal-decided';
			readonly sandbox: SandboxNames;
			readonly reason: string;
			/** A stop that is already under way goes on. */
			readonly isUnderWay: boolean;
	  }
	| {
			readonly kind: 'orphan-removal-decided';
			readonly sandbox: SandboxNames;
			readonly reason: string;
			readonly createdAt: Date;
	  }
	| {readonly kind: 'orphan-not-removed'; readonly sandbox: SandboxNames; readonly error: unknown}
	| {readonly kind: 'sandbox-left-alone'; readonly sandbox: SandboxNames; readonly reason: string}
	| {
			readonly kind: 'vm-left-alone';
			readonly sandbox: SandboxNames;
			readonly reason: string;
			/** PODS_DIR of the daemon that answers for it. */
			readonly podsDir?: string | undefined;
	  }
	| {readonly kind: 'record-unreadable'; readonly sandbox: SandboxNames; readonly error: unknown}
	| {readonly kind: 'decision-postponed'; readonly sandbox: SandboxNames; readonly reason: string}
	| {readonly kind: 'decision-not-carried-out'; readonly sandbox: SandboxNames; readonly error: unknown}
	| {readonly kind: 'predecessors-ended'}
	| {readonly kind: 'predecessor-record-unreadable'; readonly error: unknown}
	/** `count` sandboxes are left to the next daemon. */
	| {readonly kind: 'shutdown-timed-out'; readonly error: unknown; readonly count: number};

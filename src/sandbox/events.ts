/** The events of sandboxes for the observer. */
import type {AdaptorError} from '../core/errors.ts';
import type {SandboxState} from './admission.ts';
import type {Decision} from './decision.ts';
import type {PodIdentity, SandboxId} from './ports.ts';

/** Names of the sandbox of an event, as far as they are known. */
export interface SandboxNames {
	readonly sandboxId: SandboxId;
	readonly pod?: PodIdentity | undefined;
	readonly instanceName?: string | undefined;
}

/** A failed attempt that will be retried. The first has number 1. */
interface FailedAttempt {
	readonly error: unknown;
	readonly attempt: number;
	readonly retryInMs?: number;
}

/** Names and addresses of a running VM. */
export interface RunningVm {
	readonly vmId: string;
	readonly address: string;
	readonly mac: string;
	readonly vni: number;
}

/** A candidate address of a VM that is being started, and the last result of dialling it. */
export interface AddressProgress {
	readonly address: string;
	readonly progress: string;
}

/** The size of a pod VM, and its source. */
export interface SandboxSize {
	readonly vcpus: number;
	readonly vcpusFrom: string;
	readonly memoryMib: number;
	readonly memoryFrom: string;
}

/** The life of one sandbox. */
export type SandboxEvent = {readonly sandbox: SandboxNames} &
	/** `from` is undefined for a sandbox that is new to this daemon. */
	(
		| {
				readonly kind: 'sandbox-changed';
				readonly from: SandboxState['name'] | undefined;
				readonly to: SandboxState['name'];
		  }
		| {
				readonly kind: 'sandbox-created';
				readonly size: SandboxSize;
				/** Digest of the initdata. */
				readonly initdata: string | undefined;
				readonly vni: number;
				readonly netns: string;
		  }
		| {readonly kind: 'vm-started'; readonly vm: RunningVm; readonly stagesMs: Readonly<Record<string, number>>}
		/** Phrases that state the size of the VM and the larger size that the pod requested. */
		| {readonly kind: 'size-limited'; readonly limited: readonly string[]}
		/** `stage`: the step of the start that failed. */
		| {
				readonly kind: 'start-failed';
				readonly error: AdaptorError;
				readonly stage: string;
				readonly stageMs: number;
		  }
		/** A start is not done after this time. */
		| {
				readonly kind: 'start-slow';
				readonly afterMs: number;
				readonly stage: string;
				readonly addresses: readonly AddressProgress[];
				/** The last line of the console, if it can be read. */
				readonly consoleLine: string | undefined;
		  }
		| {readonly kind: 'vm-ended'; readonly error: AdaptorError; readonly vmId: string}
		| {readonly kind: 'sandbox-rolled-back'; readonly error: AdaptorError}
		| ({readonly kind: 'roll-back-failed'} & Pick<FailedAttempt, 'error'>)
		| {readonly kind: 'sandbox-resumed'; readonly vm: RunningVm}
		| {readonly kind: 'created-sandbox-resumed'; readonly vni: number}
		| ({readonly kind: 'resumption-failed'} & FailedAttempt)
		/** The successor removes it, or has removed it. */
		| {readonly kind: 'sandbox-handed-over'; readonly reason: string; readonly vmId: string}
		/** A newer sandbox of the same pod has taken its place. */
		| {readonly kind: 'sandbox-superseded'; readonly by: SandboxId}
		| {readonly kind: 'superseded-sandbox-not-removed'; readonly error: unknown}
		| {
				readonly kind: 'sandbox-removed';
				readonly durationMs: number;
				/** False if this daemon did not know the sandbox: there may have been nothing to remove. */
				readonly wasKnown: boolean;
		  }
		| ({readonly kind: 'removal-failed'} & FailedAttempt)
		/** The removal will not be resumed after a restart. */
		| {readonly kind: 'removal-not-recorded'; readonly error: unknown}
		| {readonly kind: 'relay-not-closed'; readonly error: unknown}
		/** The next reconcile round detects the end of the VM. */
		| {readonly kind: 'vm-not-watched'; readonly error: unknown}
	);

/** The findings and decisions of the reconcile loop. */
export type ReconcileEvent =
	| {readonly kind: 'reconcile-failed'; readonly error: unknown}
	/** The end of a round. `orphans`: own VMs without a sandbox; undefined if the VMs could not be listed. */
	| {readonly kind: 'reconciled'; readonly durationMs: number; readonly orphans: number | undefined}
	/** In each round for each sandbox, and for each VM without one. */
	| {readonly kind: 'decided'; readonly sandbox: SandboxNames; readonly action: Decision['action']}
	| {readonly kind: 'vms-not-listed'; readonly error: unknown; readonly isNews: boolean}
	| {
			readonly kind: 'removal-decided';
			readonly sandbox: SandboxNames;
			readonly reason: string;
			/** A stop is already in progress. */
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
			/** PODS_DIR of the owner. */
			readonly podsDir?: string | undefined;
	  }
	| {readonly kind: 'record-unreadable'; readonly sandbox: SandboxNames; readonly error: unknown}
	| {readonly kind: 'decision-postponed'; readonly sandbox: SandboxNames; readonly reason: string}
	| {readonly kind: 'decision-not-carried-out'; readonly sandbox: SandboxNames; readonly error: unknown}
	| {readonly kind: 'predecessors-ended'}
	| {readonly kind: 'predecessor-record-unreadable'; readonly error: unknown}
	/** `count` sandboxes are left to the next daemon. */
	| {readonly kind: 'shutdown-timed-out'; readonly error: unknown; readonly count: number};

/**
 * What is to be done about one sandbox: what should exist, compared with what does. Pure: no I/O, no waiting, no error
 * is thrown. Whoever wants to know why the daemon removes a VM, or leaves it alone, finds every reason on this page.
 * reconcile.ts observes and carries out.
 *
 *                             the sandbox is not in hand yet                     it is in hand
 *                  ┌───────────────────────────────────────────────┐   ┌───────────────────────────────┐
 *   record         │ creating     created      running    stopping │   │ created   running   failed    │
 *   what happens   │ roll back    resume       resume     remove   │   │ serve     serve     serve     │
 *   unless         │ predecessor: predecessor  VM ended:           │   │ a VM:     VM ended: overdue:  │
 *                  │ wait         and a VM:    roll back           │   │ roll back end       remove    │
 *                  │              wait; a VM:                      │   │                               │
 *                  │              roll back                        │   │                               │
 *                  └───────────────────────────────────────────────┘   └───────────────────────────────┘
 *
 * The pod is gone: remove, in every state. A VM without a sandbox: remove after the grace period. A VM that another
 * PODS_DIR answers for: leave alone.
 *
 * In the happy case a daemon starts and finds the record of a running sandbox. It is not in hand, its pod is there, so
 * it is resumed: from then on it is in hand and served. Every minute the same question is asked again and has the same
 * answer, until the pod is gone.
 */
import type {Presence, VmOwnership} from './ports.ts';

export interface Observation {
	/** How far the sandbox got: this daemon's own state of it when it is in hand, else what its record says. */
	readonly record: 'none' | 'unreadable' | 'creating' | 'created' | 'starting' | 'running' | 'failed' | 'stopping';
	/** This daemon answers calls for it. A sandbox of an earlier run is not in hand until it was resumed. */
	readonly isInHand: boolean;
	/** At the hypervisor, asked after the record was read. `stopped`: defined, and does not run. */
	readonly vm: 'unknown' | 'none' | 'stopped' | 'running';
	/** The pod, by its network namespace and by the cluster's word on its UID: gone when either is. */
	readonly pod: Presence;
	/** Of the VM; `ours` when there is none. */
	readonly ownership: VmOwnership;
	/** A daemon on the same PODS_DIR that began before this one: it may have calls under way. */
	readonly predecessor: 'none' | 'alive';
	/** One that began after this one: new calls reach it, and it reconciles. */
	readonly successor: 'none' | 'alive';
	/** The grace period is over: of a VM without a sandbox, or of a sandbox that failed and that nobody has stopped. */
	readonly isOverdue: boolean;
}

export type Decision =
	/** It is as it should be. */
	| {readonly action: 'serve'}
	/** Take it in hand: open its relay again, or make it ready for its start. */
	| {readonly action: 'resume'}
	/** Its VM has ended: fail its calls with the reason, and keep everything else until it is stopped. */
	| {readonly action: 'end'; readonly why: string}
	/** Remove what was made; the sandbox is remembered as failed. */
	| {readonly action: 'roll back'; readonly why: string}
	/** Remove everything, and the sandbox. */
	| {readonly action: 'remove'; readonly why: string}
	/** Close what this daemon has open of it; another daemon removes the rest. */
	| {readonly action: 'let go'; readonly why: string}
	/** Ask again later: more will be known then. */
	| {readonly action: 'wait'; readonly why: string}
	/** Nothing will be done about it, whatever comes. */
	| {readonly action: 'leave alone'; readonly why: string};

export function decide(observation: Observation): Decision {
	const {record, isInHand, pod, ownership, successor} = observation;
	if (successor === 'alive') {
		return decideForSuccessor(observation);
	}

	if (record === 'none') {
		return decideOnUnknown(observation);
	}

	if (record === 'unreadable') {
		return {action: 'leave alone', why: 'its record cannot be read'};
	}

	if (record === 'stopping') {
		return isInHand
			? {action: 'wait', why: 'its removal is under way'}
			: {action: 'remove', why: 'its removal was cut off'};
	}

	if (pod === 'gone') {
		return ownership === 'foreign' ? foreign : {action: 'remove', why: 'its pod is gone'};
	}

	return isInHand ? decideInHand(observation) : decideOnRecord(observation);
}

const foreign = {action: 'leave alone', why: 'the daemon of another PODS_DIR answers for its VM'} as const;

/** This daemon only serves what it has in hand; everything else is the successor's. */
function decideForSuccessor({record, isInHand, vm, pod}: Observation): Decision {
	if (!isInHand) {
		return {action: 'wait', why: 'a successor reconciles it'};
	}

	return record === 'running' && (vm === 'none' || vm === 'stopped' || pod === 'gone')
		? {action: 'let go', why: 'a successor removes it'}
		: {action: 'serve'};
}

/** There is no sandbox, but perhaps a VM. */
function decideOnUnknown({vm, ownership, predecessor, isOverdue}: Observation): Decision {
	if (vm === 'unknown' || vm === 'none') {
		return {action: 'leave alone', why: 'there is nothing'};
	}

	if (ownership === 'foreign') {
		return foreign;
	}

	if (predecessor === 'alive') {
		return {action: 'wait', why: 'a predecessor may know it'};
	}

	return isOverdue
		? {action: 'remove', why: 'no sandbox is known for its VM'}
		: {action: 'wait', why: 'its grace period is not over'};
}

function decideInHand({record, vm, ownership, predecessor, isOverdue}: Observation): Decision {
	const hasEnded = vm === 'none' || vm === 'stopped';
	switch (record) {
		case 'running': {
			return hasEnded ? {action: 'end', why: 'its VM has ended'} : {action: 'serve'};
		}

		case 'created': {
			if (vm === 'unknown' || vm === 'none') {
				return {action: 'serve'};
			}

			return cutOffStart(ownership, predecessor);
		}

		case 'failed': {
			return !isOverdue
				? {action: 'serve'}
				: ownership === 'foreign'
					? foreign
					: {action: 'remove', why: 'nobody has stopped it'};
		}

		// Under way, under a deadline of its own.
		case 'creating':
		case 'starting':
		case 'none':
		case 'unreadable':
		case 'stopping': {
			return {action: 'serve'};
		}
	}
}

function decideOnRecord({record, vm, ownership, predecessor}: Observation): Decision {
	switch (record) {
		case 'creating': {
			return predecessor === 'alive'
				? {action: 'wait', why: 'a predecessor may be creating it'}
				: {action: 'roll back', why: 'its creation was cut off when the daemon ended'};
		}

		case 'created':
		case 'starting': {
			if (vm === 'unknown') {
				return {action: 'wait', why: 'the KVM host does not say whether it has a VM'};
			}

			return vm === 'none' && record === 'created' ? {action: 'resume'} : cutOffStart(ownership, predecessor);
		}

		case 'running': {
			if (vm === 'unknown' || vm === 'running') {
				return {action: 'resume'};
			}

			return ownership === 'foreign' ? foreign : {action: 'roll back', why: 'its VM has ended'};
		}

		// Only a daemon that has a sandbox in hand knows these.
		case 'failed':
		case 'none':
		case 'unreadable':
		case 'stopping': {
			return {action: 'wait', why: 'its record says nothing'};
		}
	}
}

/** A VM of a sandbox that is only created: a start that has not come to its end. */
function cutOffStart(ownership: VmOwnership, predecessor: Observation['predecessor']): Decision {
	if (ownership === 'foreign') {
		return foreign;
	}

	return predecessor === 'alive'
		? {action: 'wait', why: 'a predecessor may be starting it'}
		: {action: 'roll back', why: 'its start was cut off when the daemon ended'};
}

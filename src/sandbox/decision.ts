/**
 * Decides what to do about one sandbox: compares what should exist with what does. Pure: no I/O, no waiting, never
 * throws. This file contains every reason for which the daemon removes a VM or leaves it alone. reconcile.ts makes the
 * observations and carries out the decisions.
 *
 * this daemon does not serve it yet                  it serves it
 *                  ┌───────────────────────────────────────────────┐   ┌───────────────────────────────┐
 *   record         │ creating     created      running    stopping │   │ created   running   failed    │
 *   what happens   │ roll back    resume       resume     remove   │   │ serve     serve     serve     │
 *   unless         │ predecessor: predecessor  VM ended:           │   │ a VM:     VM ended: overdue:  │
 *                  │ wait         and a VM:    roll back           │   │ roll back end       remove    │
 *                  │              wait; a VM:                      │   │                               │
 *                  │              roll back                        │   │                               │
 *                  └───────────────────────────────────────────────┘   └───────────────────────────────┘
 *
 * The pod is gone: remove, in every state. A VM without a sandbox: remove after the grace period. A VM that belongs to
 * another PODS_DIR: do not change it.
 *
 * In the happy case, a daemon starts and finds the record of a running sandbox. This daemon does not serve it yet and
 * its pod exists, so it is resumed. From then on this daemon serves it. The decision is repeated every minute, with the
 * same result until the pod is gone.
 */
import type {Presence, VmOwnership} from './ports.ts';

export interface Observation {
	/** The state of the sandbox: that of this daemon if it is in hand, otherwise that of its record. */
	readonly record: 'none' | 'unreadable' | 'creating' | 'created' | 'starting' | 'running' | 'failed' | 'stopping';
	/** This daemon answers calls for it. A sandbox of an earlier run is not in hand until it is resumed. */
	readonly isServedHere: boolean;
	/** State of the VM at the hypervisor, read after the record was read. `stopped`: defined, but not running. */
	readonly vm: 'unknown' | 'none' | 'stopped' | 'running';
	/** The pod is gone if its network namespace is gone, or if its UID is gone from the cluster. */
	readonly pod: Presence;
	/** Ownership of the VM; `ours` if there is none. */
	readonly ownership: VmOwnership;
	/** A daemon on the same PODS_DIR that started before this one. It may still process calls. */
	readonly predecessor: 'none' | 'alive';
	/** A daemon that started after this one. It gets new calls, and it reconciles. */
	readonly successor: 'none' | 'alive';
	/**
	 * The grace period has ended: the grace period of a VM without a sandbox, or of a failed sandbox that was not
	 * stopped.
	 */
	readonly isOverdue: boolean;
}

export type Decision =
	/** Nothing to do. */
	| {readonly action: 'serve'}
	/** Take the sandbox in hand: open its relay again, or prepare it for its start. */
	| {readonly action: 'resume'}
	/** The VM has ended: fail its calls with the reason, and keep everything else until StopVM. */
	| {readonly action: 'end'; readonly why: string}
	/** Remove what was created; keep the sandbox as failed. */
	| {readonly action: 'roll back'; readonly why: string}
	/** Remove everything, and the sandbox. */
	| {readonly action: 'remove'; readonly why: string}
	/** Close what this daemon has open; another daemon removes the rest. */
	| {readonly action: 'let go'; readonly why: string}
	/** Decide later, with more information. */
	| {readonly action: 'wait'; readonly why: string}
	/** Never do anything about it. */
	| {readonly action: 'leave alone'; readonly why: string};

export function decide(observation: Observation): Decision {
	const {record, isServedHere, pod, ownership, successor} = observation;
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
		return isServedHere
			? {action: 'wait', why: 'its removal is under way'}
			: {action: 'remove', why: 'its removal was interrupted'};
	}

	if (pod === 'gone') {
		return ownership === 'foreign' ? foreign : {action: 'remove', why: 'its pod is gone'};
	}

	return isServedHere ? decideServedHere(observation) : decideOnRecord(observation);
}

const foreign = {action: 'leave alone', why: 'its VM belongs to a daemon with another PODS_DIR'} as const;

/** This daemon only serves what it has in hand. The successor does everything else. */
function decideForSuccessor({record, isServedHere, vm, pod}: Observation): Decision {
	if (!isServedHere) {
		return {action: 'wait', why: 'a successor reconciles it'};
	}

	return record === 'running' && (vm === 'none' || vm === 'stopped' || pod === 'gone')
		? {action: 'let go', why: 'a successor removes it'}
		: {action: 'serve'};
}

/** Decides on a VM without a sandbox. */
function decideOnUnknown({vm, ownership, predecessor, isOverdue}: Observation): Decision {
	if (vm === 'unknown' || vm === 'none') {
		return {action: 'leave alone', why: 'it has no VM'};
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

function decideServedHere({record, vm, ownership, predecessor, isOverdue}: Observation): Decision {
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
					: {action: 'remove', why: 'it failed and was not stopped'};
		}

		// Creations and starts in this daemon have their own deadline.
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
				: {action: 'roll back', why: 'the daemon ended during its creation'};
		}

		case 'created':
		case 'starting': {
			if (vm === 'unknown') {
				return {action: 'wait', why: 'the KVM host does not answer whether it has a VM'};
			}

			return vm === 'none' && record === 'created' ? {action: 'resume'} : cutOffStart(ownership, predecessor);
		}

		case 'running': {
			if (vm === 'unknown' || vm === 'running') {
				return {action: 'resume'};
			}

			return ownership === 'foreign' ? foreign : {action: 'roll back', why: 'its VM has ended'};
		}

		// These states are never in a record.
		case 'failed':
		case 'none':
		case 'unreadable':
		case 'stopping': {
			return {action: 'wait', why: 'its record has no state'};
		}
	}
}

/** Decides on a created sandbox with a VM: its start was not completed. */
function cutOffStart(ownership: VmOwnership, predecessor: Observation['predecessor']): Decision {
	if (ownership === 'foreign') {
		return foreign;
	}

	return predecessor === 'alive'
		? {action: 'wait', why: 'a predecessor may be starting it'}
		: {action: 'roll back', why: 'the daemon ended during its start'};
}

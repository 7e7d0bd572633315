/**
 * The proof that a pod VM has ended: an error of its own type, which nothing but the VM's end throws. Every other error
 * about a VM is to be retried.
 */
import {AdaptorError, type ErrorWhere} from '../core/errors.ts';

export interface VmEnd {
	/** Goes on after "The pod VM ended: ". */
	readonly how: string;
	readonly remedy: string;
	/** Whether the hypervisor does not know the VM any more, as after a deletion; false while only its end is known. */
	readonly isRemoved?: boolean;
}

/** The VM will not answer any more. */
export class PodVmEndedError extends AdaptorError {
	override readonly name = 'PodVmEndedError';
	readonly isRemoved: boolean;

	/** @param seenBy what tells the end, such as an event's number */
	constructor(instanceName: string, {how, remedy, isRemoved = false}: VmEnd, seenBy: ErrorWhere = {}) {
		super({code: 'aborted', what: `The pod VM ended: ${how}`, where: {instanceName, ...seenBy}, remedy});
		this.isRemoved = isRemoved;
	}
}

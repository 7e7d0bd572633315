/**
 * The error that proves that a pod VM has ended. It is never thrown for another reason; all other errors about a VM may
 * be retried.
 */
import {AdaptorError, type ErrorWhere} from '../core/errors.ts';

export interface VmEnd {
	/** Continues the text "The pod VM ended: ". */
	readonly how: string;
	readonly remedy: string;
	/** Whether the VM is no longer defined at the hypervisor; false if only its end is known. */
	readonly isRemoved?: boolean;
}

/** The VM has ended. */
export class PodVmEndedError extends AdaptorError {
	override readonly name = 'PodVmEndedError';
	readonly isRemoved: boolean;

	/** @param seenBy the source, such as the number of an event */
	constructor(instanceName: string, {how, remedy, isRemoved = false}: VmEnd, seenBy: ErrorWhere = {}) {
		super({code: 'aborted', what: `The pod VM ended: ${how}`, where: {instanceName, ...seenBy}, remedy});
		this.isRemoved = isRemoved;
	}
}

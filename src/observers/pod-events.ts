/** What a pod's owner should see in `oc describe pod`: some events become Kubernetes events at their pod. */
import type {Observer} from '../core/observer.ts';
import type {Cluster, PodEvent} from '../sandbox/ports.ts';
import type {AdaptorEvent, EventOf} from './event.ts';

const podEvents: {readonly [Kind in AdaptorEvent['kind']]?: (event: EventOf<Kind>) => PodEvent | undefined} = {
	'start-failed': ({error}) => ({
		type: 'Warning',
		reason: error.reason ?? 'PodVMStartFailed',
		message: error.message,
	}),
	'vm-ended': ({error}) => ({type: 'Warning', reason: 'PodVMEnded', message: error.message}),
	// A pod that gets less than it asked for must be able to know why it is slow, or out of memory.
	'size-limited': ({limited}) => ({
		type: 'Warning',
		reason: 'PodVMSizeLimited',
		message: `The pod's VM has ${limited.join(' and ')}`,
	}),
	// A removal that was asked for is no news to the pod.
	'removal-decided': ({isUnderWay, reason}) =>
		isUnderWay
			? undefined
			: {type: 'Warning', reason: 'PodVMRemoved', message: `The pod's VM is removed: ${reason}`},
};

export function podEventObserver(cluster: Pick<Cluster, 'recordEvent'>): Observer<AdaptorEvent> {
	return {
		notify(event) {
			// Each event goes to the entry of its own kind, which the compiler cannot see of a table.
			const podEvent = (podEvents[event.kind] as ((event: AdaptorEvent) => PodEvent | undefined) | undefined)?.(
				event,
			);
			const pod = 'sandbox' in event && 'pod' in event.sandbox ? event.sandbox.pod : undefined;
			if (podEvent !== undefined && pod !== undefined) {
				cluster.recordEvent(pod, podEvent);
			}
		},
	};
}

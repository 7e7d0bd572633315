/** Writes some events as Kubernetes events of the pod, which its owner sees in `oc describe pod`. */
import type {Observer} from '../core/observer.ts';
import type {Cluster, PodEvent} from '../sandbox/ports.ts';
import type {AdaptorEvent, EventOf} from './event.ts';

const podEvents: {readonly [Kind in AdaptorEvent['kind']]?: (event: EventOf<Kind>) => PodEvent | undefined} = {
	'start-failed': ({error}) => ({
		type: 'Warning',
		reason: error.reason ?? 'PodVMStartFailed',
		message: error.message,
	}),
	// Without durations: Kubernetes merges events with equal texts.
	'start-slow': ({sandbox, stage, addresses, consoleLine}) => ({
		type: 'Normal',
		reason: 'PodVMStarting',
		message: [
			`Still starting VM ${sandbox.instanceName ?? ''}: ${stage}`,
			...(addresses.length === 0
				? ['it has no address yet']
				: addresses.map(({address, progress}) => `${address}: ${progress}`)),
			...(consoleLine === undefined ? [] : [`last console line: ${consoleLine}`]),
		].join('; '),
	}),
	'vm-ended': ({error}) => ({type: 'Warning', reason: 'PodVMEnded', message: error.message}),
	// The owner of a pod with less than requested must be able to find out why it is slow or out of memory.
	'size-limited': ({limited}) => ({
		type: 'Warning',
		reason: 'PodVMSizeLimited',
		message: `The VM of the pod has ${limited.join(' and ')}`,
	}),
	// A requested removal needs no event.
	'removal-decided': ({isUnderWay, reason}) =>
		isUnderWay
			? undefined
			: {type: 'Warning', reason: 'PodVMRemoved', message: `The VM of the pod is removed: ${reason}`},
};

export function podEventObserver(cluster: Pick<Cluster, 'recordEvent'>): Observer<AdaptorEvent> {
	return {
		notify(event) {
			// Each kind of event selects its own entry, which the compiler cannot verify.
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

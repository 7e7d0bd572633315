/**
 * When is a VM abandoned? Policy only, without I/O.
 *
 * A PeerPod is being deleted when its pod object is gone: the kubelet has confirmed the pod's end, which it does only
 * after the daemon has removed the VM; or an administrator has deleted it by force; or its node is gone from the
 * cluster. The daemon of the node removes VM and finalizer, whatever comes first. So as long as there may be a daemon
 * that serves the VM nothing is done here; and while the pod exists nothing is ever done, because it may still run: its
 * PeerPod may have been deleted by somebody all the same (the existing controller does so when the pod has a newer
 * one).
 */
import type {VmRegistration} from './peer-pod.ts';

/** What is known of a node at one moment. */
export interface NodeView {
	/** The node object is there. */
	readonly exists: boolean;
	/** Its Ready condition is True: its kubelet has been heard of lately. */
	readonly isReady: boolean;
	/** A pod of the daemon is Ready on it. */
	readonly hasDaemon: boolean;
}

/** What is known of a registration besides what it says itself. */
export interface NodeObservation {
	readonly node: NodeView;
	/** The owner is there: the same pod, not one of its name. */
	readonly hasPod: boolean;
	/**
	 * When it was first seen without daemon and pod, without interruption; the moment itself if it is the first time.
	 */
	readonly since: number;
	readonly now: number;
}

export type AbandonmentVerdict =
	/** Not ours to touch. */
	| {
			readonly action: 'leave';
			readonly why: 'in use' | 'the daemon is there' | 'the pod is there' | 'of another cluster';
	  }
	/** Abandoned since then, and not for long enough. */
	| {readonly action: 'wait'; readonly since: number}
	| {readonly action: 'delete'; readonly why: 'the node is gone' | 'the node is not ready' | 'the daemon is gone'};

export interface AbandonmentPolicy {
	/** CLUSTER_ID */
	readonly cluster: string;
	/** How long a node must have been without a daemon, without interruption. */
	readonly graceMs: number;
}

export function verdictOn(
	registration: VmRegistration,
	{node, hasPod, since, now}: NodeObservation,
	{cluster, graceMs}: AbandonmentPolicy,
): AbandonmentVerdict {
	if (registration.cluster !== cluster) {
		return {action: 'leave', why: 'of another cluster'};
	}

	if (!registration.isBeingDeleted) {
		return {action: 'leave', why: 'in use'};
	}

	if (node.exists && node.isReady && node.hasDaemon) {
		return {action: 'leave', why: 'the daemon is there'};
	}

	if (hasPod) {
		return {action: 'leave', why: 'the pod is there'};
	}

	if (now - since < graceMs) {
		return {action: 'wait', since};
	}

	return {
		action: 'delete',
		why: !node.exists ? 'the node is gone' : !node.isReady ? 'the node is not ready' : 'the daemon is gone',
	};
}

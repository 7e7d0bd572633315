/**
 * Decides when a VM is abandoned. Policy only, without I/O.
 *
 * A PeerPod is being deleted when its pod object is gone: the kubelet confirmed the end of the pod, which it only does
 * after the daemon removed the VM; or an administrator forced the deletion; or the node left the cluster. Normally the
 * daemon of the node removes VM and finalizer. So nothing is done here while a daemon may serve the VM. While the pod
 * exists, nothing is done either, because it may still run: the PeerPod may have been deleted for another reason (the
 * upstream controller deletes it if the pod has a newer one).
 */
import type {VmRegistration} from './peer-pod.ts';

/** The state of a node at one moment. */
export interface NodeView {
	/** The node object exists. */
	readonly exists: boolean;
	/** Its Ready condition is True: its kubelet is alive. */
	readonly isReady: boolean;
	/** A daemon pod is Ready on the node. */
	readonly hasDaemon: boolean;
}

/** The observed state around a registration. */
export interface NodeObservation {
	readonly node: NodeView;
	/** The owner exists: the same pod, not another one with its name. */
	readonly hasPod: boolean;
	/** Start of the current uninterrupted time without daemon and pod. */
	readonly since: number;
	readonly now: number;
}

export type AbandonmentDecision =
	/** Do nothing. */
	| {
			readonly action: 'leave';
			readonly why: 'in use' | 'the daemon is there' | 'the pod is there' | 'of another cluster';
	  }
	/** Abandoned since this time, but the grace period has not passed. */
	| {readonly action: 'wait'; readonly since: number}
	| {readonly action: 'delete'; readonly why: 'the node is gone' | 'the node is not ready' | 'the daemon is gone'};

export interface AbandonmentPolicy {
	/** CLUSTER_ID */
	readonly cluster: string;
	/** Minimum uninterrupted time without a daemon. */
	readonly graceMs: number;
}

export function decideOnVm(
	registration: VmRegistration,
	{node, hasPod, since, now}: NodeObservation,
	{cluster, graceMs}: AbandonmentPolicy,
): AbandonmentDecision {
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

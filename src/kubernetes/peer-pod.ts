/**
 * The PeerPod object: that a pod has a VM outside of the cluster. Owned by the pod and held by a finalizer, it outlives
 * the pod until somebody has seen to it that the VM is gone: the node's daemon, else a controller. Its form is the
 * existing adaptor's. Source: cloud-api-adaptor, peerpod-ctrl/api/v1alpha1 and pkg/adaptor/k8sops/peerpod.go.
 *
 * `spec.instanceID` is the VM's name, which is the sandbox's alone, and not its UUID, which is recycled
 * (docs/adr/0007): the existing controller looks instances up by UUID, finds none of that form, and deletes nothing
 * (docs/adr/0018).
 */
import {createHash} from 'node:crypto';
import type {RegisteredVm, PodIdentity} from '../sandbox/ports.ts';
import type {NewObject, JsonPatch} from './client.ts';
import {textAt} from '../core/json.ts';
import type {Kind, ObjectMeta, ObjectName, OwnerReference} from './objects.ts';

export interface PeerPod {
	readonly cloudProvider: string | undefined;
	/** The instance name of the VM, in objects of this program. */
	readonly instanceId: string | undefined;
}

export const peerPods: Kind<PeerPod> = {
	apiVersion: 'confidentialcontainers.org/v1alpha1',
	kind: 'PeerPod',
	plural: 'peerpods',
	isNamespaced: true,
	read: raw => ({cloudProvider: textAt(raw, 'spec', 'cloudProvider'), instanceId: textAt(raw, 'spec', 'instanceID')}),
};

export const peerPodFinalizer = 'peer.pod/finalizer';
export const peerPodAnnotations = {
	/** NODE_NAME and CLUSTER_ID of the daemon, which identify the VM on the KVM host. */
	node: 'kata.peerpods.io/node',
	cluster: 'kata.peerpods.io/cluster',
	sandbox: 'kata.peerpods.io/sandbox',
} as const;
const nodeLabel = 'kata.peerpods.io/node';

export interface Daemon {
	readonly node: string;
	readonly cluster: string;
}

export function peerPodName({
	instanceName,
	pod,
}: Pick<RegisteredVm, 'instanceName' | 'pod'>): ObjectName & {readonly namespace: string} {
	return {name: instanceName, namespace: pod.namespace};
}

export function newPeerPod(
	{sandboxId, instanceName, pod}: RegisteredVm,
	podUid: string,
	{node, cluster}: Daemon,
): NewObject {
	return {
		metadata: {
			name: instanceName,
			namespace: pod.namespace,
			labels: {[nodeLabel]: nodeLabelValue(node)},
			annotations: {
				[peerPodAnnotations.node]: node,
				[peerPodAnnotations.cluster]: cluster,
				[peerPodAnnotations.sandbox]: sandboxId,
			},
			finalizers: [peerPodFinalizer],
			ownerReferences: [
				{
					apiVersion: 'v1',
					kind: 'Pod',
					name: pod.name,
					uid: podUid,
					controller: true,
					blockOwnerDeletion: true,
				},
			],
		},
		spec: {cloudProvider: 'libvirt', instanceID: instanceName},
	};
}

/** The label of the PeerPods of a node. */
export function ofNode(node: string): string {
	return `${nodeLabel}=${nodeLabelValue(node)}`;
}

/** The value of a label is shorter than the name of a node may be; the annotation has the whole name. */
function nodeLabelValue(node: string): string {
	return node.length <= 63 ? node : createHash('sha256').update(node).digest('hex').slice(0, 32);
}

/** The pod that a PeerPod belongs to. */
export function ownerOf({ownerReferences}: Pick<ObjectMeta, 'ownerReferences'>): OwnerReference | undefined {
	return ownerReferences.find(({kind, controller}) => kind === 'Pod' && controller === true);
}

/** The content of a PeerPod of this program; undefined for one of upstream, or one without a finalizer. */
export interface VmRegistration {
	readonly instanceName: string;
	/** The owner. */
	readonly pod: Required<PodIdentity>;
	readonly node: string;
	readonly cluster: string;
	readonly isBeingDeleted: boolean;
}

export function registrationOf({
	cloudProvider,
	instanceId,
	metadata,
}: PeerPod & {readonly metadata: ObjectMeta}): VmRegistration | undefined {
	const {annotations, finalizers, namespace, deletionTimestamp} = metadata;
	const [node, cluster] = [annotations[peerPodAnnotations.node], annotations[peerPodAnnotations.cluster]];
	const owner = ownerOf(metadata);
	if (
		cloudProvider !== 'libvirt' ||
		instanceId === undefined ||
		node === undefined ||
		cluster === undefined ||
		owner === undefined ||
		namespace === undefined ||
		!finalizers.includes(peerPodFinalizer)
	) {
		return undefined;
	}

	return {
		instanceName: instanceId,
		pod: {name: owner.name, namespace, uid: owner.uid},
		node,
		cluster,
		isBeingDeleted: deletionTimestamp !== undefined,
	};
}

/** Removes the finalizer at its position, if it is still there; empty if there is none. */
export function withoutFinalizer(finalizers: readonly string[]): JsonPatch {
	const path = `/metadata/finalizers/${finalizers.indexOf(peerPodFinalizer)}`;
	return finalizers.includes(peerPodFinalizer)
		? [
				{op: 'test', path, value: peerPodFinalizer},
				{op: 'remove', path},
			]
		: [];
}

/**
 * The PeerPod object: it states that a pod has a VM outside of the cluster. The pod owns it, and a finalizer keeps it
 * until the daemon of the node, or else a controller, has made sure that the VM is gone. Its form is that of upstream.
 * Source: cloud-api-adaptor, peerpod-ctrl/api/v1alpha1 and pkg/adaptor/k8sops/peerpod.go.
 *
 * `spec.instanceID` is the name of the VM, which is unique to the sandbox. It is not the UUID, which is reused
 * (docs/adr/0007). The controller of upstream looks up instances by UUID, finds none with such a name, and deletes
 * nothing (docs/adr/0018).
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

/** A node name may be longer than a label value. The annotation has the whole name. */
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

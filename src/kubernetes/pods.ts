/** The fields of pods that several modules use. */
import {ownersBounds, type Kind, type ObjectMeta} from './objects.ts';

/** For kinds that also read the spec. */
export const wholePods = {
	apiVersion: 'v1',
	kind: 'Pod',
	plural: 'pods',
	isNamespaced: true,
	bounds: ownersBounds,
} as const;

export const pods: Kind<object> = {...wholePods, isMetadataOnly: true, read: () => ({})};

/** The UID that the kubelet assigned to a static pod, in its mirror in the API server. */
const mirrorAnnotation = 'kubernetes.io/config.mirror';

/**
 * Whether it is the pod with this UID and not another pod with the same name. Any pod matches if the UID is unknown. A
 * static pod has a different UID in the kubelet and in the API server.
 */
export function isSamePod(uid: string | undefined, found: ObjectMeta): boolean {
	return uid === undefined || uid === found.uid || uid === found.annotations[mirrorAnnotation];
}

/** Whether it mirrors a static pod, which runs independently of the API server. */
export function isMirror({annotations}: ObjectMeta): boolean {
	return annotations[mirrorAnnotation] !== undefined;
}

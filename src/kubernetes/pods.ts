/** Pods, as far as several here ask for them. */
import {ownersBounds, type Kind, type ObjectMeta} from './objects.ts';

/** For kinds that read the spec, too. */
export const wholePods = {
	apiVersion: 'v1',
	kind: 'Pod',
	plural: 'pods',
	isNamespaced: true,
	bounds: ownersBounds,
} as const;

export const pods: Kind<object> = {...wholePods, isMetadataOnly: true, read: () => ({})};

/** The UID that the kubelet gave to a static pod, in the API server's mirror of it. */
const mirrorAnnotation = 'kubernetes.io/config.mirror';

/**
 * Whether it is the pod with this UID, where one is known, and not another one of its name. The kubelet gives a static
 * pod another UID than the API server has.
 */
export function isSamePod(uid: string | undefined, found: ObjectMeta): boolean {
	return uid === undefined || uid === found.uid || uid === found.annotations[mirrorAnnotation];
}

/** Whether it stands for a static pod, which lives on its node whether or not the API server knows it. */
export function isMirror({annotations}: ObjectMeta): boolean {
	return annotations[mirrorAnnotation] !== undefined;
}

/** Pods, as far as several here ask for them. */
import type {PodIdentity} from '../sandbox/ports.ts';
import type {Kind, ObjectMeta} from './objects.ts';

export const pods: Kind<object> = {apiVersion: 'v1', kind: 'Pod', plural: 'pods', isNamespaced: true, read: () => ({})};

/** Whether it is the pod that kata speaks of, and not another one of its name. The kubelet gives a static pod another UID than the API server has. */
export function isSamePod({uid}: PodIdentity, found: ObjectMeta): boolean {
	return uid === undefined || uid === found.uid || uid === found.annotations['kubernetes.io/config.mirror'];
}

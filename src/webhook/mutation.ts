/**
 * What becomes of a pod that runs in a VM elsewhere: nothing of its CPU and memory is asked of the node any more, it
 * takes one of the node's VMs instead, and its VM's size stands in annotations. Pure: a Pod in, the smallest JSON patch
 * (RFC 6902) out.
 *
 * No name that stands in a path holds a character that a JSON pointer escapes (RFC 6901). Applied to its own result it
 * has nothing to do. The API server does that: when a webhook has changed a pod, its own plugins run once more, and a
 * LimitRange puts default resources back on containers that have none; they are taken away again, and were counted the
 * first time.
 */
import {annotations as podAnnotations} from '../sandbox/pod-request.ts';
import type {Pod, Resources} from './pod.ts';
import {podSize, type PodSize, type VmOverhead} from './pod-size.ts';
import {one} from './quantity.ts';

export type PatchOperation =
	| {readonly op: 'add' | 'replace'; readonly path: string; readonly value: unknown}
	| {readonly op: 'remove'; readonly path: string};

export interface MutationPolicy {
	/** The node's resource of which each pod VM takes one. */
	readonly extendedResource: string;
	readonly overhead: VmOverhead;
}

const gpusAnnotation = 'io.katacontainers.config.hypervisor.default_gpus';

export function mutation(
	pod: Pod,
	{extendedResource, overhead}: MutationPolicy,
): {readonly patch: readonly PatchOperation[]; readonly size: PodSize} {
	const [first, ...rest] = pod.containers;
	if (first === undefined) {
		// Not valid, which the API server checks, but only after this.
		return {patch: [], size: {}};
	}

	const size = podSize(pod, overhead);
	return {
		patch: [
			...annotationsAdded(pod.annotations, size),
			...without(pod.resources, '/spec/resources'),
			...pod.initContainers.flatMap(({resources}, index) =>
				without(resources, `/spec/initContainers/${index}/resources`),
			),
			...only(extendedResource, first.resources, '/spec/containers/0/resources'),
			...rest.flatMap(({resources}, index) => without(resources, `/spec/containers/${index + 1}/resources`)),
		],
		size,
	};
}

/** What the user has set is the user's word, be it empty. */
function annotationsAdded(present: Pod['annotations'], {vcpus, memoryMib, gpus}: PodSize): PatchOperation[] {
	const missing = (
		[
			[podAnnotations.vcpus, vcpus],
			[podAnnotations.memory, memoryMib],
			[gpusAnnotation, gpus],
		] as const
	).flatMap(([name, value]) =>
		value === undefined || Object.hasOwn(present ?? {}, name) ? [] : [[name, String(value)] as const],
	);
	if (missing.length === 0) {
		return [];
	}

	return present === undefined
		? [{op: 'add', path: '/metadata/annotations', value: Object.fromEntries(missing)}]
		: missing.map(([name, value]) => ({op: 'add', path: `/metadata/annotations/${name}`, value}));
}

/** Claims stay: a device that is asked for by a claim is no quantity, and must not be lost without a word. */
function without({requests, limits, others}: Resources, path: string): PatchOperation[] {
	if (requests.size === 0 && limits.size === 0) {
		return [];
	}

	return Object.keys(others).length === 0
		? [{op: 'remove', path}]
		: [...(requests.size > 0 ? ['requests'] : []), ...(limits.size > 0 ? ['limits'] : [])].map(name => ({
				op: 'remove',
				path: `${path}/${name}`,
			}));
}

function only(resource: string, {isPresent, requests, limits, others}: Resources, path: string): PatchOperation[] {
	if ([requests, limits].every(amounts => amounts.size === 1 && amounts.get(resource) === one)) {
		return [];
	}

	const amounts = {[resource]: '1'};
	return [{op: isPresent ? 'replace' : 'add', path, value: {...others, limits: amounts, requests: amounts}}];
}

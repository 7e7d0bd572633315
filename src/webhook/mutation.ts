/**
 * Changes a pod that runs in a VM outside of the node. The changed pod requests no CPU and memory of the node; it
 * requests one VM of the node instead, and its annotations contain the size of the VM. Pure: a Pod in, the smallest
 * JSON patch (RFC 6902) out.
 *
 * No name in a path contains a character that a JSON pointer escapes (RFC 6901). Applied to its own result, it changes
 * nothing. The API server does that: after a webhook has changed a pod, its own plugins run again, and a LimitRange
 * adds default resources to containers without any; the second run removes them without counting them again.
 */
import {annotations as podAnnotations} from '../sandbox/pod-request.ts';
import type {Pod, Resources} from './pod.ts';
import {podSize, type PodSize, type VmOverhead} from './pod-size.ts';
import {one} from './quantity.ts';

export type PatchOperation =
	| {readonly op: 'add' | 'replace'; readonly path: string; readonly value: unknown}
	| {readonly op: 'remove'; readonly path: string};

export interface MutationPolicy {
	/** The resource of the node; each pod VM takes one. */
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
		// A pod without containers is invalid, but the API server checks that only after the webhook.
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

/** An annotation of the user wins, even if it is empty. */
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

/** Claims are kept: a device that is requested by a claim has no quantity, and must not be dropped silently. */
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

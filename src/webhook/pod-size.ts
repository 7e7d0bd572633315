/**
 * The size of the VM of a pod: the resources that its containers may use at the same time, plus the overhead of the VM.
 * Pure arithmetic in nano-units. Source of the formula: Kubernetes, "Pod Lifecycle: resource sharing within
 * containers", and KEP-753 for sidecars; KEP-2837 for pod-level resources.
 */
import type {Container, Pod} from './pod.ts';
import {inSteps, mib, one} from './quantity.ts';

/** Overhead of a VM in nano-units. */
export interface VmOverhead {
	/** Of CPUs. */
	readonly cpu: bigint;
	/** Of bytes. */
	readonly memory: bigint;
}

/** Whole numbers; absent if the pod requests nothing, so that the defaults of the adaptor apply. */
export interface PodSize {
	readonly vcpus?: bigint;
	readonly memoryMib?: bigint;
	readonly gpus?: bigint;
}

/** The only device that a pod VM can have. */
export const gpuResource = 'nvidia.com/gpu';

export function podSize(pod: Pod, overhead: VmOverhead): PodSize {
	const [cpu, memory, gpus] = [atOnce(pod, 'cpu'), atOnce(pod, 'memory'), atOnce(pod, gpuResource)];
	return {
		...(cpu > 0n ? {vcpus: inSteps(cpu + overhead.cpu, one)} : {}),
		...(memory > 0n ? {memoryMib: inSteps(memory + overhead.memory, mib)} : {}),
		...(gpus > 0n ? {gpus: inSteps(gpus, one)} : {}),
	};
}

/**
 * The amount of a resource that a pod may use at one time. Resources of the pod as a whole take precedence; the limits
 * of containers can exceed them only if the pod as a whole has a request and no limit.
 */
function atOnce(pod: Pod, resource: string): bigint {
	const {limits, requests} = pod.resources;
	return (
		limits.get(resource) ??
		max(
			requests.get(resource) ?? 0n,
			ofContainers(pod, container => ofContainer(container, resource)),
		)
	);
}

/**
 * Init containers run one after the other, each beside the earlier sidecars; then the containers run beside all
 * sidecars.
 */
export function ofContainers({containers, initContainers}: Pod, amountOf: (container: Container) => bigint): bigint {
	let sidecars = 0n;
	let peak = 0n;
	for (const container of initContainers) {
		const own = amountOf(container);
		peak = max(peak, sidecars + own);
		sidecars += container.isSidecar ? own : 0n;
	}

	return max(
		peak,
		containers.reduce((sum, container) => sum + amountOf(container), sidecars),
	);
}

/** A VM must have room for the limit. If only the limit was set, the API server has made it the request too. */
function ofContainer({resources: {limits, requests}}: Container, resource: string): bigint {
	return limits.get(resource) ?? requests.get(resource) ?? 0n;
}

function max(a: bigint, b: bigint): bigint {
	return a > b ? a : b;
}

/**
 * Warnings for the user of a pod that asks for something that a VM beside the node does not have. The pod is created
 * all the same. Pure; a malformed field is left to the validation of the API server. Source of the limits: Kubernetes,
 * "Dynamic Admission Control", response (more than 256 characters, or 4096 in all, may be cut); kata-containers,
 * docs/Limitations.md.
 */
import {echoed} from '../core/errors.ts';
import {member, type JsonObject, type Pod} from './pod.ts';
import {gpuResource} from './pod-size.ts';
import {one} from './quantity.ts';

/** One warning for each reason, so their number is bounded: each names the first field and counts the others. */
const reasons = {
	hugePages: 'removed: the VM of a peer pod has no huge pages',
	ephemeralStorage: 'removed and not enforced: the administrator configures the disk size of the VM',
	gpus: 'the VM gets no GPU from libvirt',
	vms: 'replaced: each peer pod takes exactly one VM',
	claims: 'devices of resource claims stay at the node and are not in the VM',
	hostNamespaces: 'has no effect: the containers run in a VM and do not see the network or processes of the node',
	hostPath: 'the VM gets a copy of the regular files of the node at most, and later changes are not seen',
	persistentVolume:
		'the volume is mounted on the node: without a CSI driver for peer pods, what the containers write is lost',
	volumeDevices: 'block devices of the node are not in the VM',
} as const;

type Reason = keyof typeof reasons;

/**
 * @param document the same pod as JSON
 * @returns at most one warning for each reason, each of at most 256 ASCII characters
 */
export function podWarnings(pod: Pod, document: JsonObject, extendedResource: string): readonly string[] {
	const found = new Map<Reason, {readonly field: string; count: number}>();
	for (const [reason, field] of findings(pod, document, extendedResource)) {
		const known = found.get(reason);
		if (known === undefined) {
			found.set(reason, {field, count: 1});
		} else {
			known.count += 1;
		}
	}

	return Array.from(found, ([reason, {field, count}]) =>
		echoed(`${field}${count === 1 ? '' : ` and ${count - 1} more`}: ${reasons[reason]}`),
	);
}

type Finding = readonly [reason: Reason, field: string];

function* findings(pod: Pod, document: JsonObject, extendedResource: string): Generator<Finding> {
	for (const list of ['containers', 'initContainers'] as const) {
		for (const [index, {resources}] of pod[list].entries()) {
			const where = `spec.${list}[${index}].resources`;
			yield* resourceFindings(resources.limits, `${where}.limits`, extendedResource);
			// A resource that must have a limit has an equal request.
			const requests = [...resources.requests].filter(([name]) => !resources.limits.has(name));
			yield* resourceFindings(new Map(requests), `${where}.requests`, extendedResource);
		}
	}

	yield* resourceFindings(pod.resources.limits, 'spec.resources.limits', extendedResource);
	yield* specFindings(objectIn(document, 'spec'));
}

function* resourceFindings(
	amounts: ReadonlyMap<string, bigint>,
	where: string,
	extendedResource: string,
): Generator<Finding> {
	for (const [name, amount] of amounts) {
		const reason =
			amount === 0n
				? undefined
				: name.startsWith('hugepages-')
					? 'hugePages'
					: name === 'ephemeral-storage'
						? 'ephemeralStorage'
						: name === gpuResource
							? 'gpus'
							: name === extendedResource && amount !== one
								? 'vms'
								: undefined;
		if (reason !== undefined) {
			yield [reason, `${where}[${name}]`];
		}
	}
}

function* specFindings(spec: JsonObject): Generator<Finding> {
	if (listIn(spec, 'resourceClaims').length > 0) {
		yield ['claims', 'spec.resourceClaims'];
	}

	for (const name of ['hostNetwork', 'hostPID', 'hostIPC']) {
		if (member(spec, name) === true) {
			yield ['hostNamespaces', `spec.${name}`];
		}
	}

	for (const [index, volume] of listIn(spec, 'volumes').entries()) {
		if (member(volume, 'hostPath') !== undefined) {
			yield ['hostPath', `spec.volumes[${index}].hostPath`];
		}

		for (const source of ['persistentVolumeClaim', 'ephemeral']) {
			if (member(volume, source) !== undefined) {
				yield ['persistentVolume', `spec.volumes[${index}].${source}`];
			}
		}
	}

	for (const list of ['containers', 'initContainers']) {
		for (const [index, container] of listIn(spec, list).entries()) {
			if (listIn(container, 'volumeDevices').length > 0) {
				yield ['volumeDevices', `spec.${list}[${index}].volumeDevices`];
			}
		}
	}
}

function objectIn(parent: JsonObject, name: string): JsonObject {
	return asObject(member(parent, name));
}

function listIn(parent: JsonObject, name: string): readonly JsonObject[] {
	const list = member(parent, name);
	return Array.isArray(list) ? list.map(asObject) : [];
}

function asObject(value: unknown): JsonObject {
	return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as JsonObject) : {};
}

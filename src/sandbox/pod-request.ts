/**
 * Parses the annotations of CreateVM. No other file reads annotations. Pure.
 * Source of the names: kata-containers, src/runtime/virtcontainers/remote.go and pkg/annotations (3.4 and 4.1).
 */
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import {instanceName} from './instance-name.ts';
import type {PodIdentity, SandboxId} from './ports.ts';

const cri = 'io.kubernetes.cri.';
const hypervisor = 'io.katacontainers.config.hypervisor.';

export const annotations = {
	podName: `${cri}sandbox-name`,
	podNamespace: `${cri}sandbox-namespace`,
	vcpus: `${hypervisor}default_vcpus`,
	memory: `${hypervisor}default_memory`,
	image: `${hypervisor}image`,
	initdata: `${hypervisor}cc_init_data`,
	/** The name up to kata 3.19. */
	initdataBefore: 'io.katacontainers.config.runtime.cc_init_data',
} as const;

/**
 * Maximum lengths in characters: the owner of a pod controls some values. The sandbox name of CRI-O contains the name,
 * namespace and UID of the pod. Initdata has its own limit in `InitdataPolicy.parse`.
 */
const maxLengths: Readonly<Record<string, number>> = {
	[annotations.podName]: 512,
	[annotations.podNamespace]: 63,
	[annotations.vcpus]: 128,
	[annotations.memory]: 128,
	[annotations.image]: 512,
};
/** Kubernetes, "Object Names and IDs", DNS subdomain names. */
const maxPodNameLength = 253;

/** Sizes that the administrator configured. Memory in MiB. */
export interface SizePolicy {
	readonly vcpus: number;
	readonly memoryMib: number;
	readonly minMemoryMib: number;
	readonly maxMemoryMib: number;
	readonly minVcpus: number;
	readonly maxVcpus: number;
}

/** A valid initdata document for the VM. */
export interface Initdata {
	/**
	 * As the VM reads it. Not secret, since it comes from an annotation or the configuration, but too long for the log.
	 */
	readonly content: string;
	/** Digest of the document, as attestation measures it: `<algorithm>:<hexadecimal>`. */
	readonly digest: string;
}

export interface InitdataPolicy {
	/** Default for pods without initdata. */
	readonly configured?: Initdata;
	/** @throws AdaptorError 'invalid-argument' with `where` */
	readonly parse: (text: string, where: {readonly annotation: string}) => Initdata;
}

/** Limits and defaults that the administrator configured. */
export interface PodPolicy {
	readonly sizes: SizePolicy;
	readonly initdata: InitdataPolicy;
}

/** The source of a size, for the log. */
export type SizeSource = 'annotation' | 'configuration' | 'minimum' | 'maximum';

export interface PodRequest {
	readonly pod: PodIdentity;
	readonly instanceName: string;
	readonly vcpus: number;
	readonly vcpusFrom: SizeSource;
	readonly memoryMib: number;
	readonly memoryFrom: SizeSource;
	/** One phrase for each resource of which the pod gets less than it requested. */
	readonly limited?: readonly string[];
	/** Name of a volume, as the pod gave it; not checked here. */
	readonly image?: string;
	readonly initdata?: Initdata;
}

/** @throws AdaptorError 'invalid-argument' with the annotation and its value, unless the value is too long */
export function podRequest(
	id: SandboxId,
	given: Readonly<Record<string, string>>,
	{sizes, initdata: initdataPolicy}: PodPolicy,
): PodRequest {
	for (const [annotation, max] of Object.entries(maxLengths)) {
		assertLength(given[annotation] ?? '', annotation, max);
	}

	const pod = podIdentity(given);
	const vcpus = size(given, annotations.vcpus, {configured: sizes.vcpus, min: sizes.minVcpus, max: sizes.maxVcpus});
	const memory = size(given, annotations.memory, {
		configured: sizes.memoryMib,
		min: sizes.minMemoryMib,
		max: sizes.maxMemoryMib,
	});
	const image = given[annotations.image];
	const initdata = initdataOf(given, initdataPolicy);
	const limited = [
		...(vcpus.from === 'maximum'
			? [`${vcpus.value} virtual CPUs instead of ${vcpus.asked} (LIBVIRT_MAX_CPU)`]
			: []),
		...(memory.from === 'maximum'
			? [`${memory.value} MiB of memory instead of ${memory.asked} (LIBVIRT_MAX_MEMORY)`]
			: []),
	];
	return {
		pod,
		instanceName: instanceName(pod.name, id),
		vcpus: vcpus.value,
		vcpusFrom: vcpus.from,
		memoryMib: memory.value,
		memoryFrom: memory.from,
		...(limited.length === 0 ? {} : {limited}),
		...(image === undefined || image === '' ? {} : {image}),
		...present({initdata}),
	};
}

function podIdentity(given: Readonly<Record<string, string>>): PodIdentity {
	const required = (annotation: string): string => {
		const value = given[annotation];
		if (value === undefined || value === '') {
			throw new AdaptorError({
				code: 'invalid-argument',
				what: 'The request names no pod: an annotation is missing',
				where: {annotation},
				remedy: 'The container runtime sets it for every pod sandbox; check that the kata shim and the runtime match.',
			});
		}

		return value;
	};

	const name = required(annotations.podName);
	const namespace = required(annotations.podNamespace);
	// The sandbox name of CRI-O is k8s_<pod>_<namespace>_<uid>_<attempt>; no part can contain an underscore.
	const [, podName, , uid] = /^k8s_([^_]+)_([^_]+)_([^_]+)_\d+$/.exec(name) ?? [];
	assertLength(podName ?? name, annotations.podName, maxPodNameLength);
	return podName === undefined || uid === undefined ? {name, namespace} : {name: podName, namespace, uid};
}

function assertLength(value: string, annotation: string, max: number): void {
	if (value.length > max) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'An annotation of the pod is too long',
			where: {annotation, length: value.length},
			remedy: `Shorten it to at most ${max} characters.`,
		});
	}
}

/** The initdata of the pod, otherwise the configured one. They are never merged. */
function initdataOf(
	given: Readonly<Record<string, string>>,
	{configured, parse}: InitdataPolicy,
): Initdata | undefined {
	const annotation = [annotations.initdata, annotations.initdataBefore].find(
		name => (given[name] ?? '').trim() !== '',
	);
	return annotation === undefined ? configured : parse(given[annotation] ?? '', {annotation});
}

interface SizeBounds {
	readonly configured: number;
	readonly min: number;
	readonly max: number;
}

/** A decimal, rounded up and limited to the configured range. Absent, empty and zero mean the configured size. */
function size(
	given: Readonly<Record<string, string>>,
	annotation: string,
	{configured, min, max}: SizeBounds,
): {value: number; asked: number; from: SizeSource} {
	const text = (given[annotation] ?? '').trim();
	// A sum of floating-point numbers may have many digits.
	if (text !== '' && !/^\d{1,9}(?:\.\d{1,60})?$/.test(text)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'A size that the pod requests is not a number',
			where: {annotation, got: text.slice(0, 64)},
			remedy: 'Use a decimal number (memory in MiB), for example "2", or remove the annotation.',
		});
	}

	const asked = text === '' ? 0 : Math.ceil(Number(text));
	const wanted = asked === 0 ? configured : asked;
	if (wanted > max) {
		return {value: max, asked: wanted, from: 'maximum'};
	}

	return wanted < min
		? {value: min, asked: wanted, from: 'minimum'}
		: {value: wanted, asked: wanted, from: asked === 0 ? 'configuration' : 'annotation'};
}

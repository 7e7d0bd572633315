/** Pods and reviews as an API server sends them, and the server's side of a patch. */
import {parseQuantity} from '../../src/webhook/quantity.ts';
import type {ReviewPolicy} from '../../src/webhook/admission-review.ts';
import type {PatchOperation} from '../../src/webhook/mutation.ts';

export const vm = 'kata.peerpods.io/vm';
export const vcpusAnnotation = 'io.katacontainers.config.hypervisor.default_vcpus';
export const memoryAnnotation = 'io.katacontainers.config.hypervisor.default_memory';
export const gpusAnnotation = 'io.katacontainers.config.hypervisor.default_gpus';
export const oneVm = {limits: {[vm]: '1'}, requests: {[vm]: '1'}};

export const policy: ReviewPolicy = {
	runtimeClass: 'kata-remote',
	extendedResource: vm,
	excludedNamespaces: ['kube-system'],
	overhead: {cpu: 0n, memory: 0n},
};

export type Quantities = Record<string, string>;

export interface ContainerJson {
	name?: string;
	restartPolicy?: string;
	resources?: {requests?: Quantities; limits?: Quantities; claims?: ReadonlyArray<{readonly name: string}>};
	[other: string]: unknown;
}

/** A type, not an interface: it is handed over as any JSON object. */
export type PodJson = {
	apiVersion: 'v1';
	kind: 'Pod';
	metadata: {
		name?: string;
		generateName?: string;
		namespace?: string;
		annotations?: Record<string, string>;
		[other: string]: unknown;
	};
	spec: {
		runtimeClassName?: string;
		containers: ContainerJson[];
		initContainers?: ContainerJson[];
		resources?: {requests?: Quantities; limits?: Quantities};
		[other: string]: unknown;
	};
};

/**
 * As the API server has it after its defaults and its own plugins: RuntimeClass has set the overhead, LimitRange
 * nothing.
 */
export function podOf(
	containers: readonly ContainerJson[],
	{
		initContainers,
		resources,
		annotations,
		runtimeClassName = 'kata-remote',
	}: {
		initContainers?: readonly ContainerJson[];
		resources?: PodJson['spec']['resources'];
		annotations?: Record<string, string>;
		runtimeClassName?: string;
	} = {},
): PodJson {
	const whole = (container: ContainerJson, index: number): ContainerJson => ({
		name: `c${index}`,
		image: 'registry.example.com/app@sha256:00',
		resources: {},
		terminationMessagePath: '/dev/termination-log',
		terminationMessagePolicy: 'File',
		imagePullPolicy: 'IfNotPresent',
		...container,
	});
	return {
		apiVersion: 'v1',
		kind: 'Pod',
		metadata: {
			name: 'app',
			namespace: 'shop',
			labels: {app: 'shop'},
			...(annotations === undefined ? {} : {annotations}),
		},
		spec: {
			volumes: [{name: 'kube-api-access', projected: {sources: []}}],
			...(initContainers === undefined ? {} : {initContainers: initContainers.map(whole)}),
			containers: containers.map(whole),
			restartPolicy: 'Always',
			terminationGracePeriodSeconds: 30,
			dnsPolicy: 'ClusterFirst',
			serviceAccountName: 'default',
			nodeSelector: {'node-role.kubernetes.io/kata-oc': ''},
			securityContext: {},
			schedulerName: 'default-scheduler',
			runtimeClassName,
			priority: 0,
			enableServiceLinks: true,
			preemptionPolicy: 'PreemptLowerPriority',
			overhead: {cpu: '250m', memory: '120Mi'},
			...(resources === undefined ? {} : {resources}),
		},
	};
}

/** The question of a Kubernetes 1.29 API server about a new pod. */
export function reviewOf(
	pod: unknown,
	request: Record<string, unknown> = {},
): {apiVersion: string; kind: string; request: Record<string, unknown>} {
	return {
		apiVersion: 'admission.k8s.io/v1',
		kind: 'AdmissionReview',
		request: {
			uid: '705ab4f5-6393-11e8-b7cc-42010a800002',
			kind: {group: '', version: 'v1', kind: 'Pod'},
			resource: {group: '', version: 'v1', resource: 'pods'},
			requestKind: {group: '', version: 'v1', kind: 'Pod'},
			requestResource: {group: '', version: 'v1', resource: 'pods'},
			namespace: 'shop',
			operation: 'CREATE',
			userInfo: {
				username: 'system:serviceaccount:kube-system:replicaset-controller',
				uid: '4c0d',
				groups: ['system:serviceaccounts', 'system:authenticated'],
			},
			object: pod,
			oldObject: null,
			dryRun: false,
			options: {kind: 'CreateOptions', apiVersion: 'meta.k8s.io/v1'},
			...request,
		},
	};
}

export interface ReviewResponse {
	readonly uid: string;
	readonly allowed: boolean;
	readonly patchType?: string;
	readonly patch?: string;
	readonly warnings?: readonly string[];
	readonly status?: {
		readonly code: number;
		readonly message: string;
		readonly reason: string;
		readonly status: string;
	};
}

export function responseIn(review: unknown): ReviewResponse {
	return (review as {response: ReviewResponse}).response;
}

export function patchIn({patch}: ReviewResponse): PatchOperation[] {
	return patch === undefined ? [] : (JSON.parse(Buffer.from(patch, 'base64').toString()) as PatchOperation[]);
}

/**
 * RFC 6902 as far as it is used here, strict: what is added must have a parent, what is replaced or removed must be
 * there.
 */
export function patched<T>(document: T, patch: readonly PatchOperation[]): T {
	const result = structuredClone(document);
	for (const operation of patch) {
		const names = operation.path
			.split('/')
			.slice(1)
			.map(name => name.replaceAll('~1', '/').replaceAll('~0', '~'));
		const last = names.pop() ?? '';
		let parent: unknown = result;
		for (const name of names) {
			parent = (parent as Record<string, unknown>)[name];
		}

		if (typeof parent !== 'object' || parent === null || (operation.op !== 'add' && !Object.hasOwn(parent, last))) {
			throw new Error(`cannot ${operation.op} ${operation.path}`);
		}

		if (operation.op === 'remove') {
			Reflect.deleteProperty(parent, last);
		} else {
			(parent as Record<string, unknown>)[last] = operation.value;
		}
	}

	return result;
}

/**
 * What the API server's validation says about resources, as far as a patch could break it (pkg/apis/core/validation):
 * extended resources are whole and their limits equal their requests, no request exceeds its limit, and pod-level
 * resources cover those of the containers.
 */
export function complaints(pod: PodJson): string[] {
	const amount = (quantities: Quantities | undefined, name: string): bigint | undefined =>
		quantities?.[name] === undefined ? undefined : parseQuantity(quantities[name]);
	const found: string[] = [];
	const all = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])];
	for (const {name = '', resources = {}} of all) {
		for (const resource of Object.keys({...resources.requests, ...resources.limits})) {
			const [request, limit] = [amount(resources.requests, resource), amount(resources.limits, resource)];
			if (limit !== undefined && request !== undefined && request > limit) {
				found.push(`${name}: ${resource} is requested beyond its limit`);
			}

			if (resource.includes('/') && (request !== limit || (request ?? 1n) % 1_000_000_000n !== 0n)) {
				found.push(`${name}: ${resource} must be whole, and requested as it is limited`);
			}
		}
	}

	for (const resource of ['cpu', 'memory']) {
		const whole = amount(pod.spec.resources?.requests, resource);
		const sum = pod.spec.containers.reduce(
			(total, {resources}) => total + (amount(resources?.requests, resource) ?? 0n),
			0n,
		);
		if (whole !== undefined && sum > whole) {
			found.push(`${resource}: the containers request more than the pod`);
		}
	}

	return found;
}

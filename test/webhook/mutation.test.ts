/** What is made of a pod: its VM's size, and the patch. */
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {mutation} from '../../src/webhook/mutation.ts';
import {parsePod} from '../../src/webhook/pod.ts';
import {podSize} from '../../src/webhook/pod-size.ts';
import {mib, one} from '../../src/webhook/quantity.ts';
import {
	complaints,
	gpusAnnotation,
	memoryAnnotation,
	oneVm,
	patched,
	podOf,
	policy,
	vcpusAnnotation,
	vm,
	type ContainerJson,
	type PodJson,
	type Quantities,
} from './pods.ts';

const none = {cpu: 0n, memory: 0n};

function sizeOf(...given: Parameters<typeof podOf>): ReturnType<typeof podSize> {
	return podSize(parsePod(podOf(...given)), none);
}

function changed(pod: PodJson): PodJson {
	return patched(pod, mutation(parsePod(pod), policy).patch);
}

const limits = (limit: Quantities, request = limit): ContainerJson => ({resources: {limits: limit, requests: request}});
const requests = (request: Quantities): ContainerJson => ({resources: {requests: request}});
const sidecar = (request: Quantities): ContainerJson => ({...requests(request), restartPolicy: 'Always'});

test('CPUs and MiB are rounded up after they are summed', t => {
	t.deepEqual(sizeOf([limits({cpu: '500m', memory: '100M'}), limits({cpu: '501m', memory: '1'})]), {
		vcpus: 2n,
		memoryMib: 96n,
	});
	t.deepEqual(sizeOf([limits({cpu: '500m', memory: '512Ki'}), limits({cpu: '500m', memory: '512Ki'})]), {
		vcpus: 1n,
		memoryMib: 1n,
	});
	t.deepEqual(sizeOf([requests({cpu: '1m'})]), {vcpus: 1n});
});

test('the limit of a container counts; without a limit, its request counts', t => {
	t.deepEqual(
		sizeOf([limits({cpu: '4', memory: '4Gi'}, {cpu: '1', memory: '1Gi'}), requests({cpu: '2', memory: '2Gi'})]),
		{vcpus: 6n, memoryMib: 6144n},
	);
});

test('a pod without requests gets no size', t => {
	t.deepEqual(sizeOf([{}]), {});
	t.deepEqual(sizeOf([requests({cpu: '0', memory: '0'})]), {});
	t.deepEqual(podSize(parsePod(podOf([{}])), {cpu: one, memory: 256n * mib}), {});
});

test('init containers run before the containers, one by one: the larger counts, not the sum', t => {
	t.deepEqual(
		sizeOf([requests({cpu: '1'}), requests({cpu: '1'})], {
			initContainers: [requests({cpu: '3'}), requests({cpu: '1'})],
		}),
		{vcpus: 3n},
	);
	t.deepEqual(
		sizeOf([requests({cpu: '2'}), requests({cpu: '2'})], {
			initContainers: [requests({cpu: '3'}), requests({memory: '8Gi'})],
		}),
		{vcpus: 4n, memoryMib: 8192n},
	);
});

test('sidecars count beside the containers, and beside the init containers after them', t => {
	// KEP-753, "Resources calculation for scheduling and pod admission".
	t.deepEqual(sizeOf([requests({cpu: '1'})], {initContainers: [sidecar({cpu: '2'})]}), {vcpus: 3n});
	t.deepEqual(sizeOf([requests({cpu: '1'})], {initContainers: [requests({cpu: '5'}), sidecar({cpu: '2'})]}), {
		vcpus: 5n,
	});
	t.deepEqual(sizeOf([requests({cpu: '1'})], {initContainers: [sidecar({cpu: '2'}), requests({cpu: '5'})]}), {
		vcpus: 7n,
	});
	t.deepEqual(
		sizeOf([requests({cpu: '1'})], {
			initContainers: [sidecar({cpu: '1'}), requests({cpu: '3'}), sidecar({cpu: '2'}), requests({cpu: '4'})],
		}),
		{vcpus: 7n},
	);
});

test('a restart policy makes no sidecar of a container that is not an init container', t => {
	t.deepEqual(
		sizeOf([{...requests({cpu: '1'}), restartPolicy: 'Always'}], {
			initContainers: [{...requests({cpu: '3'}), restartPolicy: 'Never'}],
		}),
		{vcpus: 3n},
	);
});

test('pod-level resources take precedence, separately for each resource', t => {
	t.deepEqual(sizeOf([limits({cpu: '1', memory: '1Gi'})], {resources: {limits: {cpu: '4'}, requests: {cpu: '2'}}}), {
		vcpus: 4n,
		memoryMib: 1024n,
	});
	t.deepEqual(sizeOf([requests({cpu: '1'})], {resources: {requests: {cpu: '2', memory: '3Gi'}}}), {
		vcpus: 2n,
		memoryMib: 3072n,
	});
});

test('a pod-level request without a limit does not reduce the limits of the containers', t => {
	t.deepEqual(sizeOf([limits({cpu: '4'}, {cpu: '1'})], {resources: {requests: {cpu: '2'}}}), {vcpus: 4n});
});

test("the VM's own overhead is added before rounding", t => {
	const pod = parsePod(podOf([limits({cpu: '1500m', memory: '1Gi'})]));
	t.deepEqual(podSize(pod, {cpu: one / 2n, memory: 256n * mib}), {vcpus: 2n, memoryMib: 1280n});
	t.deepEqual(podSize(pod, {cpu: one / 2n + 1n, memory: 1n}), {vcpus: 3n, memoryMib: 1025n});
});

test('the number of GPUs is whole, and the overhead of the VM adds none', t => {
	t.deepEqual(
		podSize(parsePod(podOf([limits({'nvidia.com/gpu': '1'}), limits({'nvidia.com/gpu': '2'})])), {
			cpu: one,
			memory: mib,
		}),
		{gpus: 3n},
	);
});

test('the patch removes the resources, requests the VM and annotates the size, and does nothing else', t => {
	const pod = podOf([limits({cpu: '1', memory: '1Gi'}, {cpu: '500m'}), limits({cpu: '1', memory: '1Gi'}), {}], {
		initContainers: [{}, requests({cpu: '100m'})],
		resources: {requests: {cpu: '3'}},
		annotations: {'example.com/note': 'x'},
	});
	t.deepEqual(mutation(parsePod(pod), policy).patch, [
		{op: 'add', path: '/metadata/annotations/io.katacontainers.config.hypervisor.default_vcpus', value: '3'},
		{op: 'add', path: '/metadata/annotations/io.katacontainers.config.hypervisor.default_memory', value: '2048'},
		{op: 'remove', path: '/spec/resources'},
		{op: 'remove', path: '/spec/initContainers/1/resources'},
		{op: 'replace', path: '/spec/containers/0/resources', value: oneVm},
		{op: 'remove', path: '/spec/containers/1/resources'},
	]);
});

test('annotations are added to a pod without any, and resources to a container without any', t => {
	const pod = podOf([{}]);
	Reflect.deleteProperty(pod.spec.containers[0] ?? {}, 'resources');
	t.deepEqual(mutation(parsePod(pod), policy).patch, [
		{op: 'add', path: '/spec/containers/0/resources', value: oneVm},
	]);
	const sized = podOf([limits({cpu: '2'})]);
	t.deepEqual(changed(sized).metadata.annotations, {[vcpusAnnotation]: '2'});
	t.deepEqual(
		changed({...sized, metadata: {...sized.metadata, annotations: null as unknown as Record<string, string>}})
			.metadata.annotations,
		{[vcpusAnnotation]: '2'},
	);
});

test('annotations of the user are kept, even if they are empty; missing ones are added', t => {
	const pod = podOf([limits({cpu: '2', memory: '2Gi', 'nvidia.com/gpu': '1'})], {
		annotations: {[vcpusAnnotation]: '8', [gpusAnnotation]: ''},
	});
	t.deepEqual(changed(pod).metadata.annotations, {
		[vcpusAnnotation]: '8',
		[gpusAnnotation]: '',
		[memoryAnnotation]: '2048',
	});
});

test("the resource's name stands in values only, where nothing has to be escaped", t => {
	const pod = podOf([{resources: {requests: {'example.com/s390x~vm': '2'}}}]);
	t.deepEqual(mutation(parsePod(pod), {...policy, extendedResource: 'example.com/s390x~vm'}).patch, [
		{
			op: 'replace',
			path: '/spec/containers/0/resources',
			value: {limits: {'example.com/s390x~vm': '1'}, requests: {'example.com/s390x~vm': '1'}},
		},
	]);
});

test('a claim on a device is not dropped with the quantities', t => {
	const claims = [{name: 'crypto'}];
	const pod = podOf([
		{resources: {requests: {cpu: '1'}, claims}},
		{resources: {requests: {cpu: '1'}, limits: {cpu: '1'}, claims}},
		{resources: {claims}},
	]);
	t.deepEqual(
		changed(pod).spec.containers.map(({resources}) => resources),
		[{claims, ...oneVm}, {claims}, {claims}],
	);
});

test('a VM that the user requests in another notation or in another place still counts as one VM', t => {
	t.deepEqual(
		changed(podOf([limits({[vm]: '2'}), limits({[vm]: '1'})])).spec.containers.map(({resources}) => resources),
		[oneVm, undefined],
	);
	t.deepEqual(mutation(parsePod(podOf([limits({[vm]: '1000m'})])), policy).patch, []);
});

test('defaults that a LimitRange adds again after the first run are removed again, and not counted twice', t => {
	const ranged = (pod: PodJson): PodJson => ({
		...pod,
		spec: {
			...pod.spec,
			containers: pod.spec.containers.map(({resources, ...rest}) => ({
				...rest,
				resources: {
					limits: {cpu: '1', memory: '512Mi', ...resources?.limits},
					requests: {cpu: '1', memory: '512Mi', ...resources?.requests},
				},
			})),
		},
	});
	const once = changed(ranged(podOf([{}, {}])));
	t.deepEqual(once.metadata.annotations, {[vcpusAnnotation]: '2', [memoryAnnotation]: '1024'});
	t.deepEqual(changed(ranged(once)), once);
});

test('a pod without containers, which the API server will refuse later, is not changed', t => {
	t.deepEqual(mutation(parsePod(podOf([])), policy).patch, []);
});

const quantity = fc.constantFrom('0', '1', '100m', '1500m', '2', '64Mi', '1Gi', '1e3', '0.5', '7u');
const quantities = fc.dictionary(fc.constantFrom('cpu', 'memory', 'ephemeral-storage', 'hugepages-1Mi'), quantity, {
	maxKeys: 4,
});
/** As the API server completes it: a limit without a request is the request. */
const resources = fc
	.record({
		limits: fc.option(quantities, {nil: undefined}),
		extended: fc.option(fc.constantFrom('nvidia.com/gpu', vm), {nil: undefined}),
		claims: fc.option(fc.constant([{name: 'device'}]), {nil: undefined}),
	})
	.map(({limits: limit, extended, claims}) => {
		const all = {...limit, ...(extended === undefined ? {} : {[extended]: '1'})};
		return {
			...(Object.keys(all).length === 0 ? {} : {limits: all, requests: all}),
			...(claims === undefined ? {} : {claims}),
		};
	});
const container = fc.record(
	{
		resources,
		restartPolicy: fc.constantFrom('Always', 'Never'),
		env: fc.array(fc.record({name: fc.string(), value: fc.string()}), {maxLength: 2}),
	},
	{requiredKeys: ['env']},
);
const pods = fc
	.record({
		containers: fc.array(container, {minLength: 1, maxLength: 4}),
		initContainers: fc.option(fc.array(container, {maxLength: 4}), {nil: undefined}),
		whole: fc.option(
			fc.record({limits: fc.dictionary(fc.constantFrom('cpu', 'memory'), fc.constantFrom('9000', '9Ti'))}),
			{nil: undefined},
		),
		annotations: fc.option(
			fc.dictionary(
				fc.oneof(fc.constantFrom(vcpusAnnotation, memoryAnnotation, gpusAnnotation), fc.string()),
				fc.string(),
			),
			{nil: undefined},
		),
	})
	.map(({containers, initContainers, whole, annotations}) =>
		podOf(containers, {
			...(initContainers === undefined ? {} : {initContainers}),
			...(whole === undefined ? {} : {resources: whole}),
			...(annotations === undefined ? {} : {annotations}),
		}),
	);

/** The pod without what the webhook is about. */
function rest(pod: PodJson): unknown {
	const bare = ({resources: given, ...others}: ContainerJson): unknown => ({...others, claims: given?.claims});
	const {annotations, ...metadata} = pod.metadata;
	const {resources: _, containers, initContainers, ...spec} = pod.spec;
	const kept = Object.entries(annotations ?? {}).filter(
		([name]) => ![vcpusAnnotation, memoryAnnotation, gpusAnnotation].includes(name),
	);
	return {
		...pod,
		metadata: {...metadata, annotations: kept},
		spec: {...spec, containers: containers.map(bare), initContainers: initContainers?.map(bare)},
	};
}

function checkPod(t: ExecutionContext, pod: PodJson): void {
	const before = structuredClone(pod);
	const after = changed(pod);
	t.deepEqual(pod, before);
	t.deepEqual(mutation(parsePod(after), policy).patch, []);
	t.deepEqual(rest(after), rest(pod));
	t.deepEqual(complaints(after), []);
	for (const [name, value] of Object.entries(pod.metadata.annotations ?? {})) {
		t.is(after.metadata.annotations?.[name], value);
	}

	const asked = ({resources: given}: ContainerJson) => [
		...Object.entries(given?.requests ?? {}),
		...Object.entries(given?.limits ?? {}),
	];
	t.deepEqual([...after.spec.containers, ...(after.spec.initContainers ?? [])].flatMap(asked), [
		[vm, '1'],
		[vm, '1'],
	]);
	t.is(after.spec.resources === undefined || Object.keys(after.spec.resources.limits ?? {}).length === 0, true);
}

test('property: a patched pod is valid, requests one VM, keeps the rest, and is not patched again', t => {
	fc.assert(
		fc.property(pods, pod => checkPod(t, pod)),
		{numRuns: 300},
	);
});

test('property: no operation of a patch is without effect', t => {
	fc.assert(
		fc.property(pods, pod => {
			const {patch} = mutation(parsePod(pod), policy);
			for (const index of patch.keys()) {
				t.notDeepEqual(patched(pod, patch.toSpliced(index, 1)), patched(pod, patch));
			}
		}),
		{numRuns: 100},
	);
});

/** Questions as API servers ask them, and as nobody should. */
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {answerReview} from '../../src/webhook/admission-review.ts';
import {
	oneVm,
	patched,
	patchIn,
	podOf,
	policy,
	responseIn,
	reviewOf,
	vcpusAnnotation,
	vm,
	type ContainerJson,
	type PodJson,
	type Quantities,
} from './pods.ts';

const pod = podOf([{resources: {requests: {cpu: '1500m'}}}]);
const uid = '705ab4f5-6393-11e8-b7cc-42010a800002';

test('a pod of the runtime class is allowed with a JSON patch, in base64, with the uid of the request', t => {
	const {review, pod: name, size} = answerReview(reviewOf(pod), policy);
	t.like(review, {apiVersion: 'admission.k8s.io/v1', kind: 'AdmissionReview'});
	const response = responseIn(review);
	t.like(response, {uid, allowed: true, patchType: 'JSONPatch'});
	t.deepEqual(Object.keys(response).toSorted(), ['allowed', 'patch', 'patchType', 'uid']);
	const after = patched(pod, patchIn(response));
	t.deepEqual(after.spec.containers[0]?.resources, oneVm);
	t.deepEqual(after.metadata.annotations, {[vcpusAnnotation]: '2'});
	t.is(name, 'shop/app');
	t.deepEqual(size, {vcpus: 2n});
});

const unchanged: Readonly<Record<string, unknown>> = {
	'of another runtime class': reviewOf(podOf([{}], {runtimeClassName: 'kata-remote-cc'})),
	'of no runtime class': reviewOf({...pod, spec: {...pod.spec, runtimeClassName: undefined}}),
	'that is updated': reviewOf(pod, {operation: 'UPDATE', oldObject: pod}),
	'that is deleted': reviewOf(null, {operation: 'DELETE', oldObject: pod}),
	'that is bound, which creates a Binding': reviewOf(
		{apiVersion: 'v1', kind: 'Binding', metadata: {name: 'app'}, target: {kind: 'Node', name: 'n'}},
		{kind: {group: '', version: 'v1', kind: 'Binding'}, subResource: 'binding'},
	),
	'that gets an ephemeral container': reviewOf(pod, {operation: 'CREATE', subResource: 'ephemeralcontainers'}),
	'of an excluded namespace': reviewOf({...pod, metadata: {...pod.metadata, namespace: 'kube-system'}}),
	'of a controller in an excluded namespace': reviewOf(
		{...pod, metadata: {generateName: 'app-'}},
		{namespace: 'kube-system'},
	),
	'of another kind': reviewOf(
		{apiVersion: 'apps/v1', kind: 'Deployment', metadata: {name: 'app'}, spec: {}},
		{kind: {group: 'apps', version: 'v1', kind: 'Deployment'}},
	),
	'of another group': reviewOf(pod, {kind: {group: 'example.com', version: 'v1', kind: 'Pod'}}),
	'that asks for one VM already': reviewOf(podOf([{resources: oneVm}])),
	'without containers': reviewOf(podOf([])),
};
for (const [title, review] of Object.entries(unchanged)) {
	test(`${title}: passes unchanged`, t => {
		t.deepEqual(responseIn(answerReview(JSON.parse(JSON.stringify(review)), policy).review), {uid, allowed: true});
	});
}

test('the namespace of the request is used if the pod has none', t => {
	const made = {...pod, metadata: {generateName: 'app-7d4b9-', labels: {}}};
	t.is(answerReview(reviewOf(made, {namespace: 'prod'}), policy).pod, 'prod/app-7d4b9-');
	t.true('patch' in responseIn(answerReview(reviewOf(made, {namespace: 'prod'}), policy).review));
});

const denied: ReadonlyArray<readonly [field: string, object: unknown]> = [
	['request.object is', null],
	['request.object is', 'a pod'],
	['request.object is', [pod]],
	['request.object.metadata is', {spec: pod.spec}],
	['request.object.spec is', {metadata: pod.metadata, spec: 1}],
	['metadata.annotations is', {...pod, metadata: {annotations: ['x']}}],
	['spec.containers is', {...pod, spec: {...pod.spec, containers: {}}}],
	['spec.containers[0] is', {...pod, spec: {...pod.spec, containers: ['x']}}],
	['spec.initContainers[1] is', {...pod, spec: {...pod.spec, initContainers: [{}, null]}}],
	['spec.containers[0].resources is', {...pod, spec: {...pod.spec, containers: [{resources: 'x'}]}}],
	['spec.containers[0].resources.limits is', {...pod, spec: {...pod.spec, containers: [{resources: {limits: []}}]}}],
	[
		'spec.containers[0].resources.limits["cpu"] is',
		{...pod, spec: {...pod.spec, containers: [{resources: {limits: {cpu: '1 core'}}}]}},
	],
	['spec.resources.requests["memory"] is', {...pod, spec: {...pod.spec, resources: {requests: {memory: {}}}}}],
];
test('a pod that cannot be parsed is denied, with the name of the field and the uid of the request', t => {
	for (const [field, object] of denied) {
		const {review, denial} = answerReview(reviewOf(object), policy);
		const {allowed, status, ...rest} = responseIn(review);
		t.false(allowed);
		t.deepEqual(rest, {uid});
		t.like(status, {status: 'Failure', code: 400, reason: 'BadRequest'});
		t.true(status?.message.startsWith(field), status?.message);
		t.is(denial, status?.message);
	}
});

const limits = (quantities: Quantities): ContainerJson => ({resources: {limits: quantities, requests: quantities}});
const requests = (quantities: Quantities): ContainerJson => ({resources: {requests: quantities}});
const apart = (request: Quantities, limit: Quantities): ContainerJson => ({
	resources: {requests: request, limits: limit},
});
const supported = '"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "kata.peerpods.io/vm", "hugepages-"';
const of = 'spec.containers[0].resources';
/**
 * The words of pkg/apis/core/validation/validation.go in Kubernetes 1.34, but for those that begin with Unsupported
 * value at a container.
 */
const refusedByKubernetes: ReadonlyArray<readonly [message: string, object: PodJson]> = [
	[`${of}.requests[cpu]: Invalid value: "-1": must be greater than or equal to 0`, podOf([requests({cpu: '-1'})])],
	[
		`${of}.limits[nvidia.com/gpu]: Invalid value: "500m": must be an integer`,
		podOf([limits({'nvidia.com/gpu': '500m'})]),
	],
	[
		`${of}.limits[nvidia.com/gpus]: Invalid value: "1n": must be an integer`,
		podOf([limits({'nvidia.com/gpus': '1n'})]),
	],
	[`${of}.limits[kata.peerpods.io/vm]: Invalid value: "1.5": must be an integer`, podOf([limits({[vm]: '1.5'})])],
	[
		`${of}.limits: Required value: Limit must be set for non overcommitable resources`,
		podOf([requests({'nvidia.com/gpu': '1'})]),
	],
	[
		`${of}.limits: Required value: Limit must be set for non overcommitable resources`,
		podOf([requests({cpu: '1', 'hugepages-1Mi': '2Mi'})]),
	],
	[
		`${of}.requests: Invalid value: "1": must be equal to nvidia.com/gpu limit of 2`,
		podOf([apart({'nvidia.com/gpu': '1'}, {'nvidia.com/gpu': '2'})]),
	],
	[
		`${of}.requests: Invalid value: "1Mi": must be equal to hugepages-1Mi limit of 2Mi`,
		podOf([apart({cpu: '1', 'hugepages-1Mi': '1Mi'}, {'hugepages-1Mi': '2Mi'})]),
	],
	[
		`${of}.requests: Invalid value: "4": must be less than or equal to cpu limit of 3999m`,
		podOf([apart({cpu: '4'}, {cpu: '3999m'})]),
	],
	[
		`${of}.limits[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified`,
		podOf([limits({gpu: '1'})]),
	],
	[
		`${of}.limits[CPU]: Invalid value: "CPU": must be a standard resource type or fully qualified`,
		podOf([limits({CPU: '1'})]),
	],
	[
		`${of}.limits[Nvidia.com/gpu]: Invalid value: "Nvidia.com/gpu": doesn't follow extended resource name standard`,
		podOf([limits({'Nvidia.com/gpu': '1'})]),
	],
	[
		`${of}.limits[nvidia.com/gpu/0]: Invalid value: "nvidia.com/gpu/0": doesn't follow extended resource name standard`,
		podOf([limits({'nvidia.com/gpu/0': '1'})]),
	],
	[
		`${of}.limits[requests.nvidia.com/gpu]: Invalid value: "requests.nvidia.com/gpu": doesn't follow extended resource name standard`,
		podOf([limits({'requests.nvidia.com/gpu': '0'})]),
	],
	[`${of}: Forbidden: HugePages require cpu or memory`, podOf([limits({'hugepages-1Mi': '4Mi'})])],
	[
		`${of}.limits[hugepages-1Mi]: Invalid value: "1536Ki": 1536Ki is not positive integer multiple of hugepages-1Mi`,
		podOf([limits({cpu: '1', 'hugepages-1Mi': '1536Ki'})]),
	],
	[
		`${of}.limits[hugepages-large]: Invalid value: "1": 1 is not positive integer multiple of hugepages-large`,
		podOf([limits({cpu: '1', 'hugepages-large': '1'})]),
	],
	[
		`${of}.limits[nvidia.com/gpus]: Unsupported value: "nvidia.com/gpus": supported values: ${supported}`,
		podOf([limits({'nvidia.com/gpus': '1'})]),
	],
	[
		`${of}.limits[kubernetes.io/batch-cpu]: Unsupported value: "kubernetes.io/batch-cpu": supported values: ${supported}`,
		podOf([limits({'kubernetes.io/batch-cpu': '500m'})]),
	],
	[
		`spec.initContainers[1].resources.limits[example.com/nic]: Unsupported value: "example.com/nic": supported values: ${supported}`,
		podOf([{}], {initContainers: [{}, limits({'example.com/nic': '1'})]}),
	],
	[
		'spec.initContainers[0].resources.limits[nvidia.com/gpu]: Invalid value: "1500m": must be an integer',
		podOf([{}], {initContainers: [limits({'nvidia.com/gpu': '1500m'})]}),
	],
	[
		'spec.resources.requests: Invalid value: "1Gi": must be less than or equal to memory limit of 1G',
		podOf([{}], {resources: {requests: {memory: '1Gi'}, limits: {memory: '1G'}}}),
	],
	[
		'spec.resources.limits[nvidia.com/gpu]: Unsupported value: "nvidia.com/gpu": supported values: "cpu", "memory", "hugepages-"',
		podOf([{}], {resources: {limits: {'nvidia.com/gpu': '1'}, requests: {'nvidia.com/gpu': '1'}}}),
	],
	[
		'spec.resources.limits[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified',
		podOf([{}], {resources: {limits: {gpu: '1'}}}),
	],
	[
		'spec.resources.requests[cpu]: Invalid value: "1": must be greater than or equal to aggregate container requests of 1500m',
		podOf([requests({cpu: '1'}), requests({cpu: '500m'})], {resources: {requests: {cpu: '1'}}}),
	],
	[
		'spec.resources.requests[cpu]: Invalid value: "1": must be greater than or equal to aggregate container requests of 2',
		podOf([{}], {initContainers: [requests({cpu: '2'})], resources: {requests: {cpu: '1'}}}),
	],
	[
		'spec.resources.containers[1][memory].limits: Invalid value: "2Gi": must be less than or equal to pod limits of 1Gi',
		podOf([{}, apart({memory: '1Gi'}, {memory: '2Gi'})], {
			resources: {limits: {memory: '1Gi'}, requests: {memory: '1Gi'}},
		}),
	],
];
test('resources that Kubernetes refuses are denied with its text, although they would be removed', t => {
	for (const [message, object] of refusedByKubernetes) {
		const {review, denial} = answerReview(reviewOf(object), policy);
		t.deepEqual(responseIn(review), {
			uid,
			allowed: false,
			status: {status: 'Failure', reason: 'Invalid', code: 422, message},
		});
		t.is(denial, message);
	}
});

test('resources that Kubernetes accepts are not denied', t => {
	for (const object of [
		podOf([
			limits({
				'nvidia.com/gpu': '2',
				cpu: '100m',
				memory: '1Gi',
				'ephemeral-storage': '1Gi',
				'hugepages-1Mi': '4Mi',
			}),
		]),
		podOf([limits({'nvidia.com/gpu': '1000m'})]),
		podOf([limits({[vm]: '3'})]),
		podOf([limits({'amd.com/gpu': '0', 'kubernetes.io/batch-cpu': '0'})]),
		podOf([requests({cpu: '1'})], {
			initContainers: [{...requests({cpu: '1'}), restartPolicy: 'Always'}, requests({cpu: '1'})],
			resources: {requests: {cpu: '2'}, limits: {cpu: '2', 'hugepages-1Mi': '1Mi'}},
		}),
		podOf([limits({cpu: '2', memory: '1Gi'})], {resources: {requests: {memory: '1Gi'}, limits: {memory: '1Gi'}}}),
	]) {
		t.like(responseIn(answerReview(reviewOf(object), policy).review), {allowed: true}, JSON.stringify(object.spec));
	}
});

test('for other runtime classes, invalid resources are left unchanged, and Kubernetes refuses them', t => {
	const object = podOf([limits({'nvidia.com/gpu': '500m'})], {runtimeClassName: 'runc'});
	t.deepEqual(responseIn(answerReview(reviewOf(object), policy).review), {uid, allowed: true});
});

test('a denial and the log repeat at most 256 characters of a name', t => {
	const long = 'x'.repeat(1_000_000);
	for (const object of [
		podOf([limits({[long]: '1'})]),
		podOf([limits({[`${long}/x`]: '1'})]),
		podOf([limits({cpu: long})]),
		podOf([limits({cpu: '1', [`hugepages-${long}`]: '1'})]),
		podOf([apart({[`${'1'.repeat(200)}.com/${'x'.repeat(63)}`]: '1'}, {})]),
	]) {
		const {review, denial = ''} = answerReview(reviewOf(object), policy);
		t.true(denial.length > 0 && denial.length < 1200, `${denial.length}`);
		t.true(JSON.stringify(review).length < 2000);
	}

	t.is(answerReview(reviewOf({...pod, metadata: {...pod.metadata, name: long}}), policy).pod?.length, 256);
});

test('a document that is not a review, or has no uid, is refused', t => {
	const {request} = reviewOf(pod);
	for (const document of [
		null,
		1,
		'x',
		[],
		{},
		{...reviewOf(pod), apiVersion: 'admission.k8s.io/v1beta1'},
		{...reviewOf(pod), kind: 'Pod'},
		{...reviewOf(pod), request: null},
		reviewOf(pod, {uid: ''}),
		reviewOf(pod, {uid: 7}),
		{...reviewOf(pod), request: {...request, uid: undefined}},
	]) {
		t.is(t.throws(() => answerReview(document, policy), {instanceOf: AdaptorError}).code, 'invalid-argument');
	}
});

test('names of Object.prototype members are treated like other names', t => {
	const odd = JSON.parse(
		'{"metadata":{"annotations":{"constructor":"x"}},"spec":{"runtimeClassName":"kata-remote","__proto__":{"x":1},"containers":[{"resources":{"constructor":{},"limits":{"cpu":"1"}}}]}}',
	) as unknown;
	t.true(responseIn(answerReview(reviewOf(odd), policy).review).allowed);
	for (const name of ['__proto__', 'constructor']) {
		const named = JSON.parse(
			`{"metadata":{},"spec":{"runtimeClassName":"kata-remote","containers":[{"resources":{"limits":{"${name}":"1"}}}]}}`,
		) as unknown;
		t.is(
			answerReview(reviewOf(named), policy).denial,
			`spec.containers[0].resources.limits[${name}]: Invalid value: "${name}": must be a standard resource type or fully qualified`,
		);
	}
});

test('property: a review with arbitrary values in its fields is answered or refused', t => {
	const part = fc.oneof(
		fc.json().map(text => JSON.parse(text) as unknown),
		fc.constant(undefined),
	);
	fc.assert(
		fc.property(
			fc.constantFrom(
				['metadata'],
				['metadata', 'annotations'],
				['spec'],
				['spec', 'containers'],
				['spec', 'containers', '0'],
				['spec', 'containers', '0', 'resources'],
				['spec', 'initContainers'],
				['spec', 'resources'],
				[],
			),
			part,
			(path, value) => {
				const holder = {object: structuredClone(pod) as unknown};
				let parent: Record<string, unknown> = holder;
				const names = ['object', ...path];
				for (const name of names.slice(0, -1)) {
					parent = parent[name] as Record<string, unknown>;
				}

				parent[names.at(-1) ?? ''] = value;
				const response = responseIn(answerReview(reviewOf(holder.object), policy).review);
				t.is(response.uid, uid);
				t.is(typeof response.allowed, 'boolean');
				t.notThrows(() => JSON.stringify(response));
			},
		),
	);
});

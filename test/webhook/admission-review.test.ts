/** Questions as API servers ask them, and as nobody should. */
import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {answerReview} from '../../src/webhook/admission-review.ts';
import {oneVm, patched, patchIn, podOf, policy, responseIn, reviewOf, vcpusAnnotation} from './pods.ts';

const pod = podOf([{resources: {requests: {cpu: '1500m'}}}]);
const uid = '705ab4f5-6393-11e8-b7cc-42010a800002';

test('a pod of the runtime class is allowed with a JSON patch, in base64, under the uid of the question', t => {
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
	test(`what is ${title} passes unchanged`, t => {
		t.deepEqual(responseIn(answerReview(JSON.parse(JSON.stringify(review)), policy).review), {uid, allowed: true});
	});
}

test('the namespace of the request counts where the pod has none', t => {
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
	// What Kubernetes' validation would refuse, had the quantities not been taken away before it.
	[
		'spec.containers[0].resources.requests["cpu"] is not zero or more',
		{...pod, spec: {...pod.spec, containers: [{resources: {requests: {cpu: '-1'}}}]}},
	],
	[
		'spec.initContainers[0].resources.limits["example.com/nic"] is not zero or more',
		{...pod, spec: {...pod.spec, initContainers: [{resources: {limits: {'example.com/nic': '-1'}}}]}},
	],
	[
		'spec.containers[0].resources.requests["cpu"] is not at most its limit',
		{...pod, spec: {...pod.spec, containers: [{resources: {requests: {cpu: '4'}, limits: {cpu: '3999m'}}}]}},
	],
	[
		'spec.resources.requests["memory"] is not at most its limit',
		{...pod, spec: {...pod.spec, resources: {requests: {memory: '1Gi'}, limits: {memory: '1G'}}}},
	],
	['spec.resources.requests["memory"] is', {...pod, spec: {...pod.spec, resources: {requests: {memory: {}}}}}],
];
test('a pod that cannot be understood is denied, with the field, under the uid', t => {
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

test('what is no review, or has no uid to answer to, is refused', t => {
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

test("names from Object's prototype are names like others", t => {
	const odd = JSON.parse(
		'{"metadata":{"annotations":{"constructor":"x"}},"spec":{"runtimeClassName":"kata-remote","__proto__":{"x":1},"containers":[{"resources":{"limits":{"__proto__":"1","constructor":"2"}}}]}}',
	) as unknown;
	const response = responseIn(answerReview(reviewOf(odd), policy).review);
	t.deepEqual(patchIn(response), [{op: 'replace', path: '/spec/containers/0/resources', value: oneVm}]);
});

test('property: whatever stands where a review has its parts, it is answered or refused', t => {
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

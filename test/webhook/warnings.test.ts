/** What the users of peer pods are told in the warnings of an AdmissionReview. */
import test from 'ava';
import fc from 'fast-check';
import {answerReview} from '../../src/webhook/admission-review.ts';
import {until, webhookOf} from './harness.ts';
import {oneVm, podOf, policy, responseIn, reviewOf, vm, type ContainerJson, type PodJson} from './pods.ts';

const both = (quantities: Record<string, string>): ContainerJson => ({
	resources: {limits: quantities, requests: quantities},
});
const withSpec = (pod: PodJson, spec: Record<string, unknown>): PodJson => ({...pod, spec: {...pod.spec, ...spec}});
const warningsOf = (pod: unknown): readonly string[] => {
	const {review, warnings = []} = answerReview(reviewOf(pod), policy);
	const sent = responseIn(review).warnings ?? [];
	return sent.length === warnings.length ? sent : [];
};

const asked: ReadonlyArray<readonly [title: string, pod: PodJson, warning: RegExp]> = [
	[
		'huge pages',
		podOf([both({cpu: '1', 'hugepages-1Mi': '2Mi'})]),
		/^spec\.containers\[0\]\.resources\.limits\[hugepages-1Mi\]: removed: /,
	],
	[
		'huge pages of the whole pod',
		podOf([{}], {resources: {limits: {cpu: '1', 'hugepages-1Mi': '2Mi'}}}),
		/^spec\.resources\.limits\[hugepages-1Mi\]: removed: /,
	],
	[
		'ephemeral storage',
		podOf([{resources: {requests: {'ephemeral-storage': '1Gi'}}}]),
		/^spec\.containers\[0\]\.resources\.requests\[ephemeral-storage\]: removed and not enforced: /,
	],
	[
		'GPUs',
		podOf([{}], {initContainers: [both({'nvidia.com/gpu': '1'})]}),
		/^spec\.initContainers\[0\]\.resources\.limits\[nvidia\.com\/gpu\]: the VM gets no GPU/,
	],
	['two VMs', podOf([both({[vm]: '2'})]), /^spec\.containers\[0\]\.resources\.limits\[kata\.peerpods\.io\/vm\]: /],
	['resource claims', withSpec(podOf([{}]), {resourceClaims: [{name: 'nic'}]}), /^spec\.resourceClaims: devices /],
	['the network of the node', withSpec(podOf([{}]), {hostNetwork: true}), /^spec\.hostNetwork: has no effect: /],
	[
		'namespaces of the node',
		withSpec(podOf([{}]), {hostPID: true, hostIPC: true}),
		/^spec\.hostPID and 1 more: has no effect: /,
	],
	[
		'directories of the node',
		withSpec(podOf([{}]), {
			volumes: [
				{name: 'a', emptyDir: {}},
				{name: 'b', hostPath: {path: '/var/log'}},
			],
		}),
		/^spec\.volumes\[1\]\.hostPath: the VM gets a copy /,
	],
	[
		'a persistent volume',
		withSpec(podOf([{}]), {volumes: [{name: 'b', persistentVolumeClaim: {claimName: 'data'}}]}),
		/^spec\.volumes\[0\]\.persistentVolumeClaim: .* what the containers write is lost$/,
	],
	[
		'a block device',
		podOf([{volumeDevices: [{name: 'b', devicePath: '/dev/xvda'}]}]),
		/^spec\.containers\[0\]\.volumeDevices: block devices /,
	],
];
for (const [title, pod, warning] of asked) {
	test(`a pod that asks for ${title} is allowed with one warning`, t => {
		const warnings = warningsOf(pod);
		t.is(warnings.length, 1);
		t.regex(String(warnings[0]), warning);
		t.true(responseIn(answerReview(reviewOf(pod), policy).review).allowed);
	});
}

test('a device that no VM has is denied by its name, which is more than a warning', t => {
	const {denial = ''} = answerReview(reviewOf(podOf([both({'example.com/fpga': '1'})])), policy);
	t.true(denial.includes('example.com/fpga'));
});

test('a pod that gets what it asks for has no warnings, nor has a pod of another runtime class', t => {
	for (const pod of [
		podOf([both({cpu: '2', memory: '1Gi'})]),
		podOf([{resources: oneVm}]),
		podOf([both({'nvidia.com/gpu': '0', 'ephemeral-storage': '0'})]),
		withSpec(podOf([{}]), {hostNetwork: false, resourceClaims: [], volumes: [{name: 'a', configMap: {name: 'a'}}]}),
		withSpec(podOf([{}], {runtimeClassName: 'runc'}), {hostNetwork: true}),
	]) {
		t.false('warnings' in responseIn(answerReview(reviewOf(pod), policy).review), JSON.stringify(pod.spec));
	}
});

test('thousands of violations are one short warning for each reason', t => {
	const many = withSpec(
		podOf(Array.from({length: 2000}, () => both({cpu: '1', 'hugepages-1Mi': '2Mi', 'ephemeral-storage': '1'}))),
		{
			volumes: Array.from({length: 2000}, () => ({hostPath: {path: '/x'}, persistentVolumeClaim: {}})),
			hostNetwork: true,
		},
	);
	const warnings = warningsOf(many);
	t.is(warnings.length, 5);
	t.true(
		warnings.every(text => /^[ -~]{1,256}$/.test(text)),
		warnings.join('\n'),
	);
	t.true(warnings.some(text => text.includes(' and 1999 more: ')));
});

test('property: warnings are bounded and printable, whatever the pod has in their fields', t => {
	const json = fc.json().map(text => JSON.parse(text) as unknown);
	fc.assert(
		fc.property(
			fc.constantFrom('volumes', 'resourceClaims', 'hostNetwork', 'hostPID', 'initContainers'),
			fc.oneof(json, fc.array(json)),
			(name, value) => {
				const {review} = answerReview(reviewOf(withSpec(podOf([{}]), {[name]: value})), policy);
				const {warnings = []} = responseIn(review);
				t.true(warnings.length <= 9 && warnings.every(text => /^[ -~]{1,256}$/.test(text)));
			},
		),
	);
});

test('warnings are in the log too: those of a Deployment only reach its controller', async t => {
	const {client, log} = await webhookOf(t);
	await client.review(reviewOf(withSpec(podOf([{}]), {hostNetwork: true})));
	const isWarned = (): boolean => log.lines.some(({message}) => message.startsWith('user warned'));
	await until(isWarned);
	t.like(log.lines.find(({message}) => message.startsWith('user warned'))?.fields, {pod: 'shop/app'});
});

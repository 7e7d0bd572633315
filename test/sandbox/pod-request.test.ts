import test from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {instanceName, isInstanceNameOf} from '../../src/sandbox/instance-name.ts';
import {podRequest, type PodPolicy} from '../../src/sandbox/pod-request.ts';

const policy: PodPolicy = {
	sizes: {vcpus: 2, memoryMib: 8192, minMemoryMib: 512, maxMemoryMib: 65_536, minVcpus: 1, maxVcpus: 16},
	initdata: {parse: (text, {annotation}) => ({content: text, digest: annotation})},
};
const id = '0123456789abcdef'.repeat(4);
const names = {'io.kubernetes.cri.sandbox-name': 'web', 'io.kubernetes.cri.sandbox-namespace': 'shop'};
const hypervisor = 'io.katacontainers.config.hypervisor.';

test('a pod that asks for nothing gets the configured sizes', t => {
	t.deepEqual(podRequest(id, names, policy), {
		pod: {name: 'web', namespace: 'shop'},
		instanceName: 'podvm-web-01234567',
		vcpus: 2,
		vcpusFrom: 'configuration',
		memoryMib: 8192,
		memoryFrom: 'configuration',
	});
});

for (const value of ['', '0', '0.0', ' ']) {
	test(`a size of ${JSON.stringify(value)} means the configured size`, t => {
		const request = podRequest(
			id,
			{...names, [`${hypervisor}default_vcpus`]: value, [`${hypervisor}default_memory`]: value},
			policy,
		);
		t.like(request, {vcpus: 2, vcpusFrom: 'configuration', memoryMib: 8192, memoryFrom: 'configuration'});
	});
}

test('decimal vCPUs are rounded up', t => {
	t.like(podRequest(id, {...names, [`${hypervisor}default_vcpus`]: '1.7'}, policy), {
		vcpus: 2,
		vcpusFrom: 'annotation',
	});
	t.like(podRequest(id, {...names, [`${hypervisor}default_vcpus`]: '1.2000000476837158'}, policy), {
		vcpus: 2,
		vcpusFrom: 'annotation',
	});
	t.like(podRequest(id, {...names, [`${hypervisor}default_vcpus`]: '3.0'}, policy), {vcpus: 3});
	t.like(podRequest(id, {...names, [`${hypervisor}default_vcpus`]: '0.1'}, policy), {
		vcpus: 1,
		vcpusFrom: 'annotation',
	});
	t.like(
		podRequest(
			id,
			{...names, [`${hypervisor}default_vcpus`]: '1.5', [`${hypervisor}default_memory`]: '2048.5'},
			policy,
		),
		{vcpus: 2, memoryMib: 2049},
	);
});

test("sizes are kept within the administrator's bounds, and say so", t => {
	t.like(podRequest(id, {...names, [`${hypervisor}default_memory`]: '100'}, policy), {
		memoryMib: 512,
		memoryFrom: 'minimum',
	});
	t.like(podRequest(id, {...names, [`${hypervisor}default_memory`]: '999999'}, policy), {
		memoryMib: 65_536,
		memoryFrom: 'maximum',
		limited: ['65536 MiB of memory instead of 999999 (LIBVIRT_MAX_MEMORY)'],
	});
	t.like(podRequest(id, {...names, [`${hypervisor}default_vcpus`]: '17'}, policy), {
		vcpus: 16,
		vcpusFrom: 'maximum',
		limited: ['16 virtual CPUs instead of 17 (LIBVIRT_MAX_CPU)'],
	});
	t.like(
		podRequest(
			id,
			{...names, [`${hypervisor}default_vcpus`]: '0.5'},
			{...policy, sizes: {...policy.sizes, minVcpus: 2}},
		),
		{vcpus: 2, vcpusFrom: 'minimum'},
	);
});

for (const value of ['two', '-1', '1e3', '0x10', '1.2.3', 'NaN', '2 GiB', '99999999999']) {
	for (const annotation of [`${hypervisor}default_memory`, `${hypervisor}default_vcpus`]) {
		test(`${annotation.split('.').at(-1)} of ${value} is refused with the annotation's name`, t => {
			const error = t.throws(() => podRequest(id, {...names, [annotation]: value}, policy), {
				instanceOf: AdaptorError,
			});
			t.is(error.code, 'invalid-argument');
			t.deepEqual(error.where, {annotation, got: value});
			t.true(error.message.includes(annotation));
		});
	}
}

test("CRI-O's sandbox name gives the pod's name and uid", t => {
	const request = podRequest(id, {...names, 'io.kubernetes.cri.sandbox-name': 'k8s_web-0_shop_1f7e-22_0'}, policy);
	t.deepEqual(request.pod, {name: 'web-0', namespace: 'shop', uid: '1f7e-22'});
	t.is(request.instanceName, 'podvm-web-0-01234567');
});

for (const missing of ['io.kubernetes.cri.sandbox-name', 'io.kubernetes.cri.sandbox-namespace']) {
	test(`a request without ${missing} is refused by that name`, t => {
		const error = t.throws(() => podRequest(id, {...names, [missing]: ''}, policy), {instanceOf: AdaptorError});
		t.deepEqual(error.where, {annotation: missing});
	});
}

test('the image annotation is passed on; an empty one counts as absent', t => {
	t.is(podRequest(id, {...names, [`${hypervisor}image`]: 'other.qcow2'}, policy).image, 'other.qcow2');
	t.false('image' in podRequest(id, {...names, [`${hypervisor}image`]: ''}, policy));
});

const configured = {content: 'global', digest: 'configuration'};
for (const [what, given, expected] of [
	['the configured initdata', {}, configured],
	['the configured initdata, its annotation being empty', {[`${hypervisor}cc_init_data`]: ' '}, configured],
	[
		'its own initdata',
		{[`${hypervisor}cc_init_data`]: 'own\n'},
		{content: 'own\n', digest: `${hypervisor}cc_init_data`},
	],
	[
		'its own initdata by its older name',
		{[`${hypervisor}cc_init_data`]: '', 'io.katacontainers.config.runtime.cc_init_data': 'own'},
		{content: 'own', digest: 'io.katacontainers.config.runtime.cc_init_data'},
	],
] as const) {
	test(`a pod gets ${what}`, t => {
		t.deepEqual(
			podRequest(id, {...names, ...given}, {...policy, initdata: {...policy.initdata, configured}}).initdata,
			expected,
		);
	});
}

test('without any initdata there is none', t => {
	t.false('initdata' in podRequest(id, names, policy));
});

test('an instance name is a DNS label that ends with eight characters of the sandbox id', t => {
	fc.assert(
		fc.property(fc.string({minLength: 1}), fc.stringMatching(/^[A-Za-z\d][\w.-]{7,63}$/), (pod, sandboxId) => {
			const name = instanceName(pod, sandboxId);
			return (
				/^podvm-[a-z\d-]{0,48}-[a-z\d-]{7}[a-z\d]$/.test(name) &&
				name.length <= 63 &&
				isInstanceNameOf(name, sandboxId)
			);
		}),
	);
	t.false(isInstanceNameOf('podvm-web-01234568', id));
	t.false(isInstanceNameOf('web-01234567', id));
	t.is(instanceName('a'.repeat(253), id), `podvm-${'a'.repeat(48)}-01234567`);
});

for (const [annotation, longest] of [
	['io.kubernetes.cri.sandbox-name', 512],
	['io.kubernetes.cri.sandbox-namespace', 63],
	[`${hypervisor}image`, 512],
	[`${hypervisor}default_vcpus`, 128],
	[`${hypervisor}default_memory`, 128],
] as const) {
	test(`a too long ${annotation.split('.').at(-1)} (over ${longest} characters) is refused and not repeated`, t => {
		// A pattern that is tried on all of it would be slow for some of these; a size of spaces alone means none.
		for (const value of [' '.repeat(longest + 1), 'a'.repeat(1_000_000), `k8s_${'a_'.repeat(200_000)}`]) {
			const error = t.throws(() => podRequest(id, {...names, [annotation]: value}, policy), {
				instanceOf: AdaptorError,
			});
			t.is(error.code, 'invalid-argument');
			t.deepEqual(error.where, {annotation, length: value.length});
			t.true(error.message.length < 500);
		}
	});
}

test('the longest names of Kubernetes are accepted, in the forms of containerd and CRI-O', t => {
	const [pod, namespace, uid] = ['a'.repeat(253), 'b'.repeat(63), '0b2c8a51-1d3c-4b1e-9d4b-0a1b2c3d4e5f'];
	for (const name of [pod, `k8s_${pod}_${namespace}_${uid}_4294967295`]) {
		t.like(
			podRequest(
				id,
				{'io.kubernetes.cri.sandbox-name': name, 'io.kubernetes.cri.sandbox-namespace': namespace},
				policy,
			).pod,
			{name: pod, namespace},
		);
	}

	for (const name of [`${pod}a`, `k8s_${pod}a_${namespace}_${uid}_0`]) {
		t.throws(() => podRequest(id, {...names, 'io.kubernetes.cri.sandbox-name': name}, policy), {
			instanceOf: AdaptorError,
		});
	}
});

test('unknown annotations are ignored, whatever their length', t => {
	const others = Object.fromEntries(
		Array.from({length: 1000}, (_, index) => [`${hypervisor}machine_type_${index}`, 'x'.repeat(1000)]),
	);
	t.deepEqual(podRequest(id, {...names, ...others}, policy), podRequest(id, names, policy));
});

/**
 * deploy/ is what Kubernetes takes: built by kubectl, checked against the types of its API and against itself. And
 * these checks can fail.
 */
import {readFileSync, readdirSync} from 'node:fs';
import {join} from 'node:path';
import test from 'ava';
import type {CustomResourceDefinition} from 'kubernetes-types/apiextensions/v1.js';
import type {Service} from 'kubernetes-types/core/v1.js';
import type {RuntimeClass} from 'kubernetes-types/node/v1.js';
import type {PodDisruptionBudget} from 'kubernetes-types/policy/v1.js';
import type {ClusterRoleBinding} from 'kubernetes-types/rbac/v1.js';
import {settings} from '../../src/config/settings.ts';
import {
	build,
	containersOf,
	deployDirectory,
	ofKind,
	overlays,
	read,
	samples,
	workloads,
	type Manifest,
	type Workload,
} from './manifests.ts';
import {relationErrors} from './relations.ts';
import {nameOf, typeErrors} from './types.ts';

const definitions = ['base/peerpod.crd.yaml', 'base/peerpodconfig.crd.yaml'].flatMap(file => read(file)) as Array<
	Manifest & CustomResourceDefinition
>;

/** What is there without us, or made by the user as docs/install.md says: the samples show most of it. */
const others = new Set([
	...samples().map(nameOf),
	'Secret auth-json-secret',
	'Secret certs-for-tls',
	// Of every cluster, of OpenShift, and of its monitoring.
	'ClusterRole system:auth-delegator',
	'ClusterRole system:openshift:scc:hostnetwork-v2',
	'ServiceAccount prometheus-k8s in openshift-monitoring',
	// Every namespace has it; with the operator it is the daemon's.
	'ServiceAccount default',
]);

for (const overlay of overlays) {
	test(`overlay ${overlay}: kubectl builds it, objects match their types, and references exist`, async t => {
		const manifests = await build(`overlays/${overlay}`);
		t.true(manifests.length > 0);
		t.deepEqual(typeErrors(manifests, definitions), []);
		t.deepEqual(relationErrors(manifests, {others}), []);
	});
}

test("the samples are of their kinds' types, peerpodconfig-openshift of our own definition's", t => {
	t.deepEqual(typeErrors(samples(), definitions), []);
	t.true(samples().some(({kind}) => kind === 'PeerPodConfig'));
});

test('OpenShift nodes get kata and CRI-O drop-ins for the daemon socket and the runtime handler', async t => {
	const [machineConfig, ...more] = read('nodes/machine-config.yaml') as MachineConfig[];
	t.deepEqual(more, []);
	t.deepEqual(typeErrors([machineConfig as Manifest], []), []);
	const files = machineConfig?.spec.config.storage.files.map(({contents: {source}}) =>
		Buffer.from(source.split('base64,')[1] ?? '', 'base64').toString(),
	);
	const [kata, crio] = ['configuration-remote.toml', 'crio-kata-remote.conf'].map(name =>
		readFileSync(join(deployDirectory, 'nodes', name), 'utf8'),
	);
	t.deepEqual(files, [kata, crio]);
	t.true(kata?.includes(`remote_hypervisor_socket = "${settings.socketPath.default}"`));
	const [runtimeClass] = ofKind<Manifest & RuntimeClass>(await base, 'RuntimeClass');
	t.true(crio?.includes(`[crio.runtime.runtimes.${runtimeClass?.handler ?? ''}]`));
	t.true(crio?.includes(`"${machineConfig?.spec.config.storage.files[0]?.path ?? ''}"`));
});

test('the DaemonSet contains everything that the DaemonSet of the operator contains', async t => {
	// Source: openshift/sandboxed-containers-operator, controllers/peerpods.go (processDaemonsetForCAA).
	const daemonSet = (await base).find(each => nameOf(each) === 'DaemonSet osc-caa-ds') as Workload;
	const {spec} = daemonSet.spec.template;
	const [container] = containersOf(daemonSet);
	t.like(daemonSet, {
		metadata: {namespace: 'openshift-sandboxed-containers-operator'},
		spec: {selector: {matchLabels: {name: 'osc-caa-ds'}}},
	});
	t.like(spec, {hostNetwork: true});
	t.like(container, {
		name: 'caa-pod',
		command: ['/usr/local/bin/entrypoint.sh'],
		securityContext: {
			runAsUser: 0,
			capabilities: {drop: ['ALL'], add: ['NET_ADMIN', 'SYS_ADMIN']},
			readOnlyRootFilesystem: true,
			seLinuxOptions: {type: 'spc_t'},
		},
		envFrom: [{secretRef: {name: 'peer-pods-secret'}}, {configMapRef: {name: 'peer-pods-cm'}}],
	});
	t.true(
		container?.env?.some(
			({name, valueFrom}) => name === 'NODE_NAME' && valueFrom?.fieldRef?.fieldPath === 'spec.nodeName',
		),
	);
	const mounted = new Map(
		container?.volumeMounts?.map(({mountPath, name, readOnly, mountPropagation}) => {
			const {hostPath, secret} = spec.volumes?.find(volume => volume.name === name) ?? {};
			return [
				mountPath,
				[
					hostPath?.path ??
						`${secret?.secretName ?? ''} ${secret?.defaultMode?.toString(8) ?? ''}${secret?.optional === true ? ' optional' : ''}`,
					mountPropagation ?? (readOnly === true ? 'read-only' : ''),
				],
			];
		}),
	);
	t.deepEqual(
		['/run/peerpod', '/run/netns', '/root/.ssh', '/root/containers'].map(path => mounted.get(path)),
		[
			['/run/peerpod', ''],
			['/run/netns', 'HostToContainer'],
			['ssh-key-secret 600 optional', 'read-only'],
			['auth-json-secret 600 optional', 'read-only'],
		],
	);
});

test('every image has a name, and a tag or digest that does not change by itself', async t => {
	for (const manifests of await Promise.all(overlays.map(async overlay => build(`overlays/${overlay}`)))) {
		for (const {image = ''} of workloads(manifests).flatMap(containersOf)) {
			t.regex(image, /^[a-z0-9.\-]+\.[a-z]+\/.+(?::(?!latest)[\w.\-]+|@sha256:[0-9a-f]{64})$/v);
		}
	}
});

test('no sample holds a key', t => {
	const texts = readdirSync(deployDirectory, {recursive: true, encoding: 'utf8'})
		.filter(name => name.endsWith('.yaml'))
		.map(name => readFileSync(join(deployDirectory, name), 'utf8'));
	t.true(texts.length > 10);
	t.deepEqual(
		texts.filter(text => /-----BEGIN|ssh-(?:rsa|ed25519) A/v.test(text)),
		[],
	);
});

const base = build('overlays/openshift');

type MachineConfig = Manifest & {spec: {config: {storage: {files: Array<{path: string; contents: {source: string}}>}}}};

type Find = (name: string) => Manifest;
type Edit = (find: Find, manifests: Manifest[]) => void;

const slips: ReadonlyArray<readonly [slip: string, edit: Edit, complaint: RegExp]> = [
	[
		'a field that the kind does not have',
		find => Object.assign(daemonOf(find).spec.template.spec, {hostNetworks: true}),
		/"hostNetworks"' does not exist/v,
	],
	[
		'a field of a container that is misspelt',
		find => Object.assign(containersOf(daemonOf(find))[0] ?? {}, {volumemounts: []}),
		/"volumemounts"' does not exist/v,
	],
	[
		'a field that is missing',
		find => Reflect.deleteProperty(daemonOf(find).spec, 'selector'),
		/'selector' is missing/v,
	],
	[
		'a number where text belongs',
		find => Object.assign(containersOf(daemonOf(find))[0]?.resources ?? {}, {requests: {cpu: 1}}),
		/'number' is not assignable to type 'string'/v,
	],
	[
		'a field of the custom resource that is not defined',
		(_find, manifests) => manifests.push(peerPodConfig({limits: '10'})),
		/"limits"' does not exist/v,
	],
	[
		'a limit that is no text',
		(_find, manifests) => manifests.push(peerPodConfig({limit: 10})),
		/'number' is not assignable to type 'string'/v,
	],
	[
		'a kind of an API version that is gone',
		find => Object.assign(daemonOf(find), {apiVersion: 'extensions/v1beta1'}),
		/there is no type for extensions\/v1beta1/v,
	],
	[
		'a word that Kubernetes does not know',
		find => Object.assign(daemonOf(find).spec.template.spec, {dnsPolicy: 'Node'}),
		/dnsPolicy is "Node", expected one of/v,
	],
	[
		'a selector that does not match',
		find => Object.assign(daemonOf(find).spec.selector?.matchLabels ?? {}, {name: 'caa'}),
		/selector does not match/v,
	],
	[
		'a service account that is not there',
		find => Object.assign(daemonOf(find).spec.template.spec, {serviceAccountName: 'caa'}),
		/there is no ServiceAccount caa/v,
	],
	[
		'no service account at all',
		find => Reflect.deleteProperty(daemonOf(find).spec.template.spec, 'serviceAccountName'),
		/there is no ServiceAccount undefined/v,
	],
	[
		'a config map that is not there',
		find => containersOf(daemonOf(find))[0]?.envFrom?.push({configMapRef: {name: 'peer-pod-cm'}}),
		/there is no ConfigMap peer-pod-cm/v,
	],
	[
		'a mount without a volume',
		find => containersOf(daemonOf(find))[0]?.volumeMounts?.push({name: 'modules', mountPath: '/lib/modules'}),
		/no volume modules/v,
	],
	[
		'a volume that nobody mounts',
		find => daemonOf(find).spec.template.spec.volumes?.push({name: 'modules', hostPath: {path: '/lib/modules'}}),
		/nobody mounts the volume modules/v,
	],
	[
		'a binding to a role that is not there',
		find => Object.assign(bindingOf(find).roleRef, {name: 'daemon'}),
		/there is no ClusterRole daemon/v,
	],
	[
		'a binding of an account elsewhere',
		find => Object.assign(bindingOf(find).subjects?.[0] ?? {}, {namespace: 'default'}),
		/there is no ServiceAccount cloud-api-adaptor in default/v,
	],
	[
		'a role that nobody has',
		(_find, manifests) =>
			manifests.splice(
				manifests.findIndex(each => nameOf(each) === 'RoleBinding cloud-api-adaptor-daemon'),
				1,
			),
		/Role cloud-api-adaptor-daemon: nobody has it/v,
	],
	[
		'an object in another namespace',
		find => Object.assign(daemonOf(find).metadata, {namespace: 'kube-system'}),
		/namespace is kube-system/v,
	],
	[
		'peer pods on nodes without the daemon',
		find => Object.assign(daemonOf(find).spec.template.spec.nodeSelector ?? {}, {'kata.peerpods.io/node': 'yes'}),
		/nodes without the daemon/v,
	],
	[
		'a disruption budget for nobody',
		find =>
			Object.assign(
				(find('PodDisruptionBudget peer-pods-webhook') as Manifest & PodDisruptionBudget).spec ?? {},
				{selector: {matchLabels: {app: 'webhook'}}},
			),
		/PodDisruptionBudget peer-pods-webhook: does not select/v,
	],
	[
		'a service that leads to no port',
		find => Object.assign(serviceOf(find).spec?.ports?.[0] ?? {}, {targetPort: 8443}),
		/no container has the port 8443/v,
	],
	[
		'a webhook whose service is called otherwise',
		find => Object.assign(serviceOf(find).metadata, {name: 'webhook'}),
		/calls a service or port that is not there/v,
	],
	[
		'a webhook without a certificate',
		find => Object.assign(serviceOf(find).metadata, {annotations: {}}),
		/there is no Secret peer-pods-webhook-svc-secret/v,
	],
	[
		'a webhook that the API server does not trust',
		find => Object.assign(find('MutatingWebhookConfiguration mwebhook.peerpods.io').metadata, {annotations: {}}),
		/not told whom to trust/v,
	],
	[
		'a probe of a port that the container does not have',
		find => Object.assign(containersOf(find('Deployment peer-pods-webhook') as Workload)[0] ?? {}, {ports: []}),
		/a probe asks port probes/v,
	],
	[
		'a definition with a field of no type',
		find =>
			Object.assign(
				definitionOf(find).spec.versions[0]?.schema?.openAPIV3Schema?.properties?.['spec']?.properties ?? {},
				{limit: {description: 'x'}},
			),
		/spec\.limit has no type/v,
	],
	[
		'an object that is there twice',
		(_find, manifests) => manifests.push(...manifests.slice(0, 1)),
		/is there twice/v,
	],
];

for (const [slip, edit, complaint] of slips) {
	test(`${slip} is found`, async t => {
		const manifests = structuredClone(await base);
		edit(name => {
			const found = manifests.find(each => nameOf(each) === name);
			return t.truthy(found) ? found : t.fail();
		}, manifests);
		t.regex([...relationErrors(manifests, {others}), ...typeErrors(manifests, definitions)].join('\n'), complaint);
	});
}

function daemonOf(find: Find): Workload {
	return find('DaemonSet osc-caa-ds') as Workload;
}

function serviceOf(find: Find): Service & Manifest {
	return find('Service peer-pods-webhook-svc') as Service & Manifest;
}

function bindingOf(find: Find): ClusterRoleBinding & Manifest {
	return find('ClusterRoleBinding cloud-api-adaptor-daemon') as ClusterRoleBinding & Manifest;
}

function definitionOf(find: Find): CustomResourceDefinition & Manifest {
	return find('CustomResourceDefinition peerpodconfigs.confidentialcontainers.org') as CustomResourceDefinition &
		Manifest;
}

function peerPodConfig(spec: object): Manifest {
	const [config] = ofKind(samples(), 'PeerPodConfig');
	return {...config, spec: {cloudSecretName: 'a', configMapName: 'b', ...spec}} as Manifest;
}

test('the relay process has no permissions and only certificates, and is only replaced by hand', async t => {
	for (const overlay of ['kubernetes', 'openshift', 'operator']) {
		const manifests = await build(`overlays/${overlay}`);
		const relay = manifests.find(each => nameOf(each) === 'DaemonSet osc-caa-relay') as Workload;
		t.like(relay, {spec: {updateStrategy: {type: 'OnDelete'}}}, overlay);
		const {spec} = relay.spec.template;
		t.like(spec, {automountServiceAccountToken: false, serviceAccountName: 'cloud-api-adaptor-relay'});
		const [container] = containersOf(relay);
		t.like(container?.securityContext, {
			capabilities: {drop: ['ALL']},
			allowPrivilegeEscalation: false,
			readOnlyRootFilesystem: true,
		});
		t.is(container?.livenessProbe, undefined, 'a restart would end the pods');
		t.deepEqual(
			spec.volumes?.map(({hostPath, secret}) => hostPath?.path ?? secret?.secretName),
			['/run/peerpod', 'certs-for-tls'],
		);
		t.deepEqual(
			ofKind<Manifest & ClusterRoleBinding>(manifests, 'ClusterRoleBinding')
				.flatMap(({subjects = []}) => subjects)
				.filter(({name}) => name === 'cloud-api-adaptor-relay'),
			[],
		);
	}
});

/**
 * Roles let their accounts do all that they do in the cluster, and nothing else: found by letting them do everything
 * against an API server that asks the role.
 */
import test from 'ava';
import type {PolicyRule} from 'kubernetes-types/rbac/v1.js';
import {leaseName} from '../../src/cli/controller.ts';
import {controllerSettings} from '../../src/cli/controller-settings.ts';
import {loadSettings} from '../../src/config/config.ts';
import {writeConfigMap} from '../../src/kubernetes/config-map.ts';
import {joinCluster} from '../../src/kubernetes/cluster.ts';
import {cleanUpAfterNodes} from '../../src/kubernetes/controller.ts';
import {whileLeading} from '../../src/kubernetes/leader.ts';
import {extendedResource} from '../../src/kubernetes/node-capacity.ts';
import {textAt} from '../../src/core/json.ts';
import {silentLogger} from '../../src/core/log.ts';
import {testCluster} from '../kubernetes/cluster.ts';
import {peerPodConfigKind, peerPodKind, type ApiCall, type TestApiServer} from '../support/api-server.ts';
import {build, ofKind, workloads, type Manifest} from './manifests.ts';
import {namespace} from './relations.ts';

type Role = Manifest & {rules: PolicyRule[]};

/** `nodes/status patch`, with where and of which name it is a right. */
interface Right {
	readonly text: string;
	readonly group: string;
	readonly namespace: string | undefined;
	readonly names: readonly string[] | undefined;
}

function rightsOf(roles: readonly Role[]): Right[] {
	return roles.flatMap(({metadata, rules}) =>
		rules.flatMap(({apiGroups = [], resources = [], verbs, resourceNames}) =>
			apiGroups.flatMap(group =>
				resources.flatMap(resource =>
					verbs.map(verb => ({
						text: `${resource} ${verb}`,
						group,
						namespace: metadata.namespace,
						names: resourceNames,
					})),
				),
			),
		),
	);
}

function textOf({plural, subresource, verb}: ApiCall): string {
	return `${plural}${subresource === undefined ? '' : `/${subresource}`} ${verb}`;
}

/** Kubernetes, "Using RBAC Authorization". */
function allows(right: Right, call: ApiCall): boolean {
	return (
		right.text === textOf(call) &&
		right.group === call.group &&
		(right.namespace === undefined || right.namespace === call.namespace) &&
		(right.names === undefined || right.names.includes(call.name ?? ''))
	);
}

/** From now on the API server asks the roles. */
function authorize(
	api: TestApiServer,
	roles: readonly Role[],
): {readonly refused: () => string[]; readonly unused: () => string[]} {
	const rights = rightsOf(roles);
	const used = new Set<Right>();
	const refused = new Set<string>();
	api.fault(call => {
		const right = rights.find(each => allows(each, call));
		if (right === undefined) {
			refused.add(textOf(call));
			return 'forbidden';
		}

		used.add(right);
		return undefined;
	});
	return {refused: () => [...refused], unused: () => rights.filter(right => !used.has(right)).map(({text}) => text)};
}

test('the daemon needs every right of its role, and no other', async t => {
	const {api, signal} = await testCluster(t);
	const roles = ofKind<Role>(await build('daemon-role'), 'ClusterRole', 'Role');
	const {refused, unused} = authorize(api, roles);
	api.define(peerPodKind, peerPodConfigKind);
	api.put('nodes', {metadata: {name: 'worker-0'}});
	api.put('daemonsets', {metadata: {name: 'osc-caa-ds', namespace}});
	api.put('peerpodconfigs', {metadata: {name: 'peerpodconfig-openshift', namespace}, spec: {limit: '5'}});
	api.put('serviceaccounts', {metadata: {name: 'default', namespace: 'default'}, imagePullSecrets: [{name: 'pull'}]});
	api.put('secrets', {
		metadata: {name: 'pull', namespace: 'default'},
		type: 'kubernetes.io/dockerconfigjson',
		data: {'.dockerconfigjson': Buffer.from('{"auths": {"r.example": {"auth": "YTpi"}}}').toString('base64')},
	});
	api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}, spec: {serviceAccountName: 'default'}});
	const vm = {
		sandboxId: 'a'.repeat(64),
		instanceName: 'podvm-nginx-aaaaaaaa',
		pod: {name: 'nginx', namespace: 'default'},
	};
	const event = {type: 'Warning', reason: 'Failed', message: 'no'} as const;

	const cluster = await joinCluster({
		server: api.address,
		serviceAccountDirectory: api.accountDirectory,
		node: 'worker-0',
		cluster: 'east',
		limitPerNode: 7,
		podUid: 'uid-1',
		daemonSet: 'osc-caa-ds',
		vmNames: async () => [],
		log: silentLogger,
	});
	const capacity = (): string | undefined =>
		textAt(api.find('nodes', 'worker-0'), 'status', 'capacity', extendedResource);
	await api.until(() => refused().length > 0 || capacity() === '5');
	await cluster.registerVm(vm, signal);
	cluster.reconcile([vm]);
	await api.until(
		() => refused().length > 0 || api.calls.some(({plural, verb}) => plural === 'peerpods' && verb === 'list'),
	);
	t.is(await cluster.podPresence(vm, signal), 'present');
	// A finalizer of someone else's before ours: then the object has to be read first.
	const [peerPod] = api.list('peerpods');
	api.put('peerpods', {
		...peerPod,
		metadata: {
			...peerPod?.metadata,
			name: peerPod?.metadata.name ?? '',
			finalizers: ['another/finalizer', 'peer.pod/finalizer'],
		},
	});
	t.truthy(await cluster.pullCredentials(vm.pod, signal));
	cluster.recordEvent(vm.pod, event);
	cluster.recordEvent(vm.pod, event);
	await api.until(
		() => refused().length > 0 || api.calls.some(({plural, verb}) => plural === 'events' && verb === 'patch'),
	);
	cluster.unregisterVm(vm);
	await api.until(
		() => refused().length > 0 || api.calls.some(({plural, verb}) => plural === 'peerpods' && verb === 'delete'),
	);
	api.delete('daemonsets', 'osc-caa-ds', namespace);
	await cluster[Symbol.asyncDispose]();
	t.is(capacity(), undefined);

	t.deepEqual(refused(), []);
	t.deepEqual(unused(), [
		// OpenShift's admission asks for it where a PeerPod is made that blocks its owner's deletion
		// (OwnerReferencesPermissionEnforcement).
		'pods/finalizers update',
	]);
});

test('the Job that pushes the pod VM image may write to peer-pods-cm, and nothing else', async t => {
	const {api, client, signal} = await testCluster(t);
	const {refused, unused} = authorize(api, ofKind<Role>(await build('overlays/openshift-image'), 'Role'));
	for (const name of ['peer-pods-cm', 'another']) {
		api.put('configmaps', {metadata: {name, namespace}, data: {}});
	}

	await writeConfigMap(client, {namespace, name: 'peer-pods-cm'}, {LIBVIRT_VOL_NAME: 'new.qcow2'}, signal);
	await t.throwsAsync(writeConfigMap(client, {namespace, name: 'another'}, {LIBVIRT_VOL_NAME: 'new.qcow2'}, signal));
	t.deepEqual([refused(), unused()], [['configmaps patch'], []]);
});

test("the controller needs every right of its roles, and no other; its daemons are the DaemonSet's pods", async t => {
	const {api, client} = await testCluster(t);
	const manifests = await build('overlays/openshift');
	const {refused, unused} = authorize(
		api,
		ofKind<Role>(manifests, 'ClusterRole', 'Role').filter(({metadata}) => metadata.name === 'peer-pods-controller'),
	);
	api.define(peerPodKind);
	api.put('peerpods', {
		metadata: {
			name: 'podvm-nginx-aaaaaaaa',
			namespace: 'default',
			finalizers: ['peer.pod/finalizer'],
			annotations: {
				'kata.peerpods.io/node': 'worker-0',
				'kata.peerpods.io/cluster': 'east',
				'kata.peerpods.io/sandbox': 'a'.repeat(64),
			},
			ownerReferences: [
				{
					apiVersion: 'v1',
					kind: 'Pod',
					name: 'nginx',
					uid: 'uid-1',
					controller: true,
					blockOwnerDeletion: true,
				},
			],
		},
		spec: {cloudProvider: 'libvirt', instanceID: 'podvm-nginx-aaaaaaaa'},
	});
	api.delete('peerpods', 'podvm-nginx-aaaaaaaa', 'default');
	const {daemonSelector} = loadSettings(controllerSettings, {CLUSTER_ID: 'east'}, {hostname: 'a'});
	const [name = '', value] = daemonSelector.split('=');
	t.is(workloads(manifests).find(({kind}) => kind === 'DaemonSet')?.spec.template.metadata?.labels?.[name], value);

	const stopping = new AbortController();
	const lease = {namespace, name: leaseName};
	const lead = async (): Promise<void> =>
		whileLeading(
			{client, lease, identity: 'a', retryMs: 1, renewDeadlineMs: 500, log: silentLogger},
			async signal =>
				cleanUpAfterNodes(
					{
						client,
						namespace,
						daemonSelector,
						cluster: 'east',
						graceMs: 0,
						intervalMs: 1,
						deleteVm: async () => true,
						log: silentLogger,
					},
					signal,
				),
			stopping.signal,
		);
	const leading = lead();
	await api.until(
		() => refused().length > 0 || api.find('peerpods', 'podvm-nginx-aaaaaaaa', 'default') === undefined,
	);
	stopping.abort();
	await leading;

	t.deepEqual(refused(), []);
	t.deepEqual(unused(), []);
});

import test, {type ExecutionContext} from 'ava';
import {decideOnVm, type NodeView} from '../../src/kubernetes/abandonment.ts';
import {cleanUpAfterNodes} from '../../src/kubernetes/controller.ts';
import {newPeerPod, type VmRegistration} from '../../src/kubernetes/peer-pod.ts';
import {peerPodKind, type TestApiServer} from '../support/api-server.ts';
import {recordingLog} from '../support/recording-log.ts';
import {testCluster} from './cluster.ts';

const instanceName = 'podvm-nginx-1a2b3c4d';
const claim: VmRegistration = {
	instanceName,
	pod: {name: 'nginx', namespace: 'default', uid: 'uid-1'},
	node: 'worker-0',
	cluster: 'east',
	isBeingDeleted: true,
};

test('a VM is deleted if its PeerPod is being deleted and its daemon is gone for the grace period', t => {
	const policy = {cluster: 'east', graceMs: 100};
	const healthy: NodeView = {exists: true, isReady: true, hasDaemon: true};
	const gone: NodeView = {exists: false, isReady: false, hasDaemon: false};
	const long = {node: gone, hasPod: false, since: 0, now: 1e9};
	t.is(decideOnVm(claim, {...long, node: healthy}, policy).action, 'leave');
	t.is(decideOnVm(claim, {...long, hasPod: true}, policy).action, 'leave');
	t.is(decideOnVm({...claim, isBeingDeleted: false}, long, policy).action, 'leave');
	t.is(decideOnVm({...claim, cluster: 'west'}, long, policy).action, 'leave');
	for (const node of [gone, {...healthy, hasDaemon: false}, {...healthy, isReady: false}]) {
		t.is(decideOnVm(claim, {...long, node, now: 99}, policy).action, 'wait');
		t.is(decideOnVm(claim, {...long, node, now: 100}, policy).action, 'delete');
	}
});

interface Fixture {
	readonly api: TestApiServer;
	/** VMs that were deleted. */
	readonly deleted: VmRegistration[];
	readonly log: ReturnType<typeof recordingLog>;
	/** Moves the controller's clock. */
	readonly pass: (ms: number) => void;
	/** Resolves when the controller has looked at everything twice more: at least once whole. */
	readonly rounds: () => Promise<void>;
	/** What deleting a VM does. */
	failure: Error | undefined;
}

const conditions = (status: string): object => ({conditions: [{type: 'Ready', status}]});

async function fixture(t: ExecutionContext): Promise<Fixture> {
	const {api, client} = await testCluster(t);
	api.define(peerPodKind);
	const pod = api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
	const peerPod = newPeerPod({sandboxId: '1a2b3c4d', ...claim}, pod.metadata.uid, claim);
	api.put('peerpods', {...peerPod, metadata: {...peerPod.metadata, name: instanceName, namespace: 'default'}});
	api.put('nodes', {metadata: {name: 'worker-0'}, status: conditions('True')});
	api.put('pods', {
		metadata: {name: 'daemon', namespace: api.namespace, labels: {name: 'osc-caa-ds'}},
		spec: {nodeName: 'worker-0'},
		status: conditions('True'),
	});
	const log = recordingLog();
	const deleted: VmRegistration[] = [];
	const ending = new AbortController();
	let time = 0;
	const state: Fixture = {
		api,
		deleted,
		log,
		failure: undefined,
		pass(ms) {
			time += ms;
		},
		async rounds() {
			const lists = (): number =>
				api.calls.filter(({plural, verb}) => plural === 'peerpods' && verb === 'list').length;
			const before = lists();
			await api.until(() => lists() >= before + 3);
		},
	};
	const done = cleanUpAfterNodes(
		{
			client,
			namespace: api.namespace,
			daemonSelector: 'name=osc-caa-ds',
			cluster: 'east',
			graceMs: 300_000,
			intervalMs: 1,
			now: () => time,
			log,
			async deleteVm(each) {
				if (state.failure !== undefined) {
					throw state.failure;
				}

				deleted.push(each);
				return true;
			},
		},
		ending.signal,
	);
	t.teardown(async () => {
		ending.abort();
		await done;
	});
	return state;
}

const isThere = (api: TestApiServer): boolean => api.find('peerpods', instanceName, 'default') !== undefined;

test('the node is gone: after the grace the VM is deleted, then the finalizer removed', async t => {
	const {api, deleted, pass, rounds} = await fixture(t);
	api.delete('nodes', 'worker-0');
	api.delete('pods', 'nginx', 'default');
	await rounds();
	pass(299_999);
	await rounds();
	t.deepEqual(deleted, []);
	t.true(isThere(api));
	pass(1);
	await api.until(() => !isThere(api));
	t.deepEqual(
		deleted.map(({pod: {uid: _, ...pod}, ...rest}) => ({...rest, pod})),
		[{...claim, pod: {name: 'nginx', namespace: 'default'}}],
	);
});

test('a pod that exists keeps its VM, whatever became of its node', async t => {
	const {api, deleted, pass, rounds} = await fixture(t);
	api.delete('nodes', 'worker-0');
	api.delete('pods', 'daemon', api.namespace);
	await rounds();
	pass(1e9);
	await rounds();
	t.deepEqual(deleted, []);
	t.true(isThere(api));
});

test('a pod that exists keeps its VM also when its PeerPod is deleted; another pod of its name does not', async t => {
	const {api, deleted, pass, rounds} = await fixture(t);
	api.delete('nodes', 'worker-0');
	api.delete('peerpods', instanceName, 'default');
	await rounds();
	pass(1e9);
	await rounds();
	t.deepEqual(deleted, []);
	api.delete('pods', 'nginx', 'default');
	api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
	await rounds();
	pass(1e9);
	await api.until(() => !isThere(api));
	t.is(deleted.length, 1);
});

test('if the node has a daemon, the VM is left to it, and each absence starts a new grace period', async t => {
	const {api, deleted, pass, rounds} = await fixture(t);
	api.delete('pods', 'nginx', 'default');
	await rounds();
	pass(1e9);
	await rounds();
	api.put('nodes', {metadata: {name: 'worker-0'}, status: conditions('Unknown')});
	await rounds();
	pass(200_000);
	await rounds();
	api.put('nodes', {metadata: {name: 'worker-0'}, status: conditions('True')});
	await rounds();
	api.put('pods', {metadata: {name: 'daemon', namespace: api.namespace}, status: conditions('False')});
	await rounds();
	pass(200_000);
	await rounds();
	t.deepEqual(deleted, []);
	pass(100_000);
	await api.until(() => !isThere(api));
	t.is(deleted.length, 1);
});

test('a VM that cannot be deleted keeps its finalizer until it can', async t => {
	const state = await fixture(t);
	const {api, deleted, pass, rounds} = state;
	state.failure = new Error('the host is away');
	api.delete('nodes', 'worker-0');
	api.delete('pods', 'nginx', 'default');
	await rounds();
	pass(1e9);
	await rounds();
	t.true(isThere(api));
	state.failure = undefined;
	await api.until(() => !isThere(api));
	t.is(deleted.length, 1);
});

test('PeerPods of upstream, and of other clusters, are not changed', async t => {
	const {api, deleted, log, pass, rounds} = await fixture(t);
	api.put('peerpods', {
		metadata: {name: 'nginx-resource-abcde', namespace: 'default', finalizers: ['peer.pod/finalizer']},
		spec: {cloudProvider: 'libvirt', instanceID: '7d8e1f9c-3a52-4d0e-9b62-0c3f6c1f8d11'},
	});
	const {metadata, ...rest} = newPeerPod({sandboxId: 'x', ...claim}, 'nobody', {node: 'worker-9', cluster: 'west'});
	api.put('peerpods', {
		...rest,
		metadata: {
			...metadata,
			name: 'podvm-west',
			namespace: 'default',
			ownerReferences: [{apiVersion: 'v1', kind: 'Pod', name: 'nginx', uid: 'nobody', controller: true}],
		},
	});
	api.delete('peerpods', 'nginx-resource-abcde', 'default');
	await rounds();
	pass(1e9);
	await rounds();
	t.deepEqual(deleted, []);
	t.is(log.lines.filter(({level}) => level === 'warn').length, 1);
	t.is(api.list('peerpods').length, 3);
});

test('if nodes cannot be read, nothing is deleted', async t => {
	const {api, deleted, pass, rounds} = await fixture(t);
	api.delete('pods', 'nginx', 'default');
	using _ = api.fault(({plural}) => (plural === 'nodes' ? 'forbidden' : undefined));
	await rounds();
	pass(1e9);
	await rounds();
	t.deepEqual(deleted, []);
	t.true(isThere(api));
});

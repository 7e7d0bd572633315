import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {at, listAt, textAt} from '../../src/core/json.ts';
import {peerPodFinalizer} from '../../src/kubernetes/peer-pod.ts';
import {PeerPods, type PeerPodsOptions} from '../../src/kubernetes/peer-pods.ts';
import {silentLogger} from '../../src/core/log.ts';
import type {RegisteredVm} from '../../src/sandbox/ports.ts';
import {peerPodKind, type Raw, type TestApiServer} from '../support/api-server.ts';
import {recordingLog} from '../support/recording-log.ts';
import {clientOf, testCluster} from './cluster.ts';

const vm: RegisteredVm = {
	sandboxId: '1a2b3c4d'.repeat(8),
	instanceName: 'podvm-nginx-1a2b3c4d',
	pod: {name: 'nginx', namespace: 'default'},
};
const unconditional = new AbortController().signal;

function found(api: TestApiServer, name = vm.instanceName): Raw | undefined {
	return api.find('peerpods', name, 'default');
}

interface Fixture {
	readonly api: TestApiServer;
	readonly podUid: string;
	/** Names of VMs that there are. */
	readonly vms: string[];
	readonly start: (options?: Partial<PeerPodsOptions>) => PeerPods;
}

async function fixture(t: ExecutionContext, kinds = [peerPodKind]): Promise<Fixture> {
	const {api} = await testCluster(t);
	api.define(...kinds);
	const {
		metadata: {uid: podUid},
	} = api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
	const vms: string[] = [];
	return {
		api,
		podUid,
		vms,
		start(options = {}) {
			const client = clientOf(api);
			const peerPods = new PeerPods({
				client,
				node: 'worker-0',
				cluster: 'east',
				vmNames: async () => vms,
				log: silentLogger,
				retryMs: [1, 5],
				// A busy machine is not what is tested.
				patienceMs: 60_000,
				...options,
			});
			t.teardown(async () => {
				await peerPods[Symbol.asyncDispose]();
				client[Symbol.dispose]();
			});
			return peerPods;
		},
	};
}

test('when registerVm resolves, the PeerPod exists, with owner, finalizer and the name of the VM', async t => {
	const {api, podUid, start} = await fixture(t);
	await start().registerVm(vm, unconditional);
	const peerPod = found(api);
	t.deepEqual(at(peerPod, 'spec'), {cloudProvider: 'libvirt', instanceID: 'podvm-nginx-1a2b3c4d'});
	t.deepEqual(listAt(peerPod, 'metadata', 'finalizers'), ['peer.pod/finalizer']);
	t.deepEqual(listAt(peerPod, 'metadata', 'ownerReferences'), [
		{apiVersion: 'v1', kind: 'Pod', name: 'nginx', uid: podUid, controller: true, blockOwnerDeletion: true},
	]);
	t.is(textAt(peerPod, 'metadata', 'annotations', 'kata.peerpods.io/node'), 'worker-0');
});

test('when the VM is gone, the PeerPod is deleted', async t => {
	const {api, start} = await fixture(t);
	const peerPods = start();
	await peerPods.registerVm(vm, unconditional);
	peerPods.unregisterVm(vm);
	await api.until(() => found(api) === undefined);
	t.is(api.calls.filter(({plural, verb}) => plural === 'peerpods' && verb === 'get').length, 0);
});

test('the PeerPod stays until the VM is gone, even if the pod is gone', async t => {
	const {api, start} = await fixture(t);
	const peerPods = start();
	await peerPods.registerVm(vm, unconditional);
	api.delete('pods', 'nginx', 'default');
	await api.until(() => at(found(api), 'metadata', 'deletionTimestamp') !== undefined);
	peerPods.unregisterVm(vm);
	await api.until(() => found(api) === undefined);
	t.pass();
});

test('foreign finalizers stay, and so do the PeerPods that have them', async t => {
	const {api, start} = await fixture(t);
	const peerPods = start();
	await peerPods.registerVm(vm, unconditional);
	api.put('peerpods', {
		metadata: {name: vm.instanceName, namespace: 'default', finalizers: ['example.com/audit', peerPodFinalizer]},
	});
	peerPods.unregisterVm(vm);
	const peerPod = await api.until(() => at(found(api), 'metadata', 'deletionTimestamp') !== undefined && found(api));
	t.deepEqual(listAt(peerPod, 'metadata', 'finalizers'), ['example.com/audit']);
});

test('after a restart the existing PeerPod is reused', async t => {
	const {api, start} = await fixture(t);
	const before = start();
	await before.registerVm(vm, unconditional);
	const {uid} = found(api)?.metadata ?? {};
	await before[Symbol.asyncDispose]();
	const after = start();
	await after.registerVm(vm, unconditional);
	t.is(found(api)?.metadata.uid, uid);
	after.unregisterVm(vm);
	await api.until(() => found(api) === undefined);
});

test('an unreachable API server does not delay a pod for long, and gets the registration later', async t => {
	const {api, start} = await fixture(t);
	const log = recordingLog();
	const peerPods = start({patienceMs: 20, log});
	using away = api.fault(() => 'drop');
	await peerPods.registerVm(vm, unconditional);
	t.is(found(api), undefined);
	away[Symbol.dispose]();
	await api.until(() => found(api));
	t.true(log.lines.some(({level, message}) => level === 'warn' && message.includes('continuing in the background')));
});

test('a registration that is withdrawn before it succeeded leaves nothing, whichever request arrives first', async t => {
	const {api, start} = await fixture(t);
	const peerPods = start({patienceMs: 5});
	{
		using _ = api.fault(({plural}) => (plural === 'peerpods' ? 'drop-after' : undefined));
		await peerPods.registerVm(vm, unconditional);
		await api.until(() => found(api));
		peerPods.unregisterVm(vm);
	}

	await api.until(() => found(api) === undefined);
	using _ = api.fault(({plural}) => (plural === 'pods' ? 'silence' : undefined));
	await peerPods.registerVm(vm, unconditional);
	peerPods.unregisterVm(vm);
	await peerPods[Symbol.asyncDispose]();
	t.is(found(api), undefined);
});

test('the wait ends with its signal', async t => {
	const {api, start} = await fixture(t);
	using _ = api.fault(() => 'silence');
	const caller = new AbortController();
	const claim = start().registerVm(vm, caller.signal);
	await api.until(() => api.calls.some(({plural}) => plural === 'pods'));
	const reason = new Error('stopped');
	caller.abort(reason);
	t.is(await t.throwsAsync(claim), reason);
});

test('a cluster without PeerPods is logged once; when the kind appears, running VMs are registered', async t => {
	const {api, start} = await fixture(t, []);
	const log = recordingLog();
	const peerPods = start({log, patienceMs: 60_000});
	const other = {...vm, instanceName: 'podvm-nginx-99999999'};
	await Promise.all([peerPods.registerVm(vm, unconditional), peerPods.registerVm(other, unconditional)]);
	t.is(log.lines.filter(({level}) => level === 'warn').length, 1);
	peerPods.unregisterVm(other);
	api.define(peerPodKind);
	await api.until(() => found(api));
	t.is(found(api, other.instanceName), undefined);
});

test('missing permission for PeerPods is logged once and delays nothing; VMs are registered later', async t => {
	const {api, start} = await fixture(t);
	const log = recordingLog();
	const other = {...vm, instanceName: 'podvm-nginx-99999999'};
	const stopped = {...vm, instanceName: 'podvm-nginx-00000000'};
	const peerPods = start({log, patienceMs: 60_000});
	await peerPods.registerVm(stopped, unconditional);
	{
		using _ = api.fault(({plural}) => (plural === 'peerpods' ? 'forbidden' : undefined));
		await peerPods.registerVm(vm, unconditional);
		await peerPods.registerVm(other, unconditional);
		peerPods.unregisterVm(stopped);
		const {length} = api.calls;
		await api.until(() => api.calls.length > length + 20);
		t.is(log.lines.filter(({level}) => level === 'warn').length, 1);
		t.truthy(found(api, stopped.instanceName));
	}

	await api.until(
		() => found(api) && found(api, other.instanceName) && found(api, stopped.instanceName) === undefined,
	);
	while (!log.lines.some(({level, message}) => level === 'info' && message === 'PeerPods are up to date again')) {
		await turn();
	}

	t.pass();
});

test('without permission, requests are retried with growing pauses', async t => {
	const {api, start} = await fixture(t);
	const creates = (): number =>
		api.calls.filter(({plural, verb}) => plural === 'peerpods' && verb === 'create').length;
	using _ = api.fault(({plural}) => (plural === 'peerpods' ? 'forbidden' : undefined));
	const peerPods = start({retryMs: [1, 256]});
	await peerPods.registerVm(vm, unconditional);
	peerPods.reconcile([vm]);
	const startedAt = performance.now();
	await api.until(() => creates() >= 10);
	// Pauses of 2, 4, ... 256 ms at least, each shortened by a fifth at most.
	t.true(performance.now() - startedAt >= 0.8 * 510 - 10);
});

test('a namespace that refuses objects does not affect other namespaces', async t => {
	const {api, start} = await fixture(t);
	api.put('namespaces', {metadata: {name: 'ending'}});
	api.put('pods', {metadata: {name: 'nginx', namespace: 'ending'}});
	using _ = api.fault(({namespace}) => (namespace === 'ending' ? 'forbidden' : undefined));
	const peerPods = start();
	peerPods.reconcile([{...vm, instanceName: 'podvm-nginx-99999999', pod: {name: 'nginx', namespace: 'ending'}}, vm]);
	await api.until(() => found(api));
	t.pass();
});

test('with the permissions of upstream, the finalizer is removed, and the object is deleted with its pod', async t => {
	const {api, start} = await fixture(t);
	using _ = api.fault(({plural, verb}) =>
		plural === 'peerpods' && !['create', 'patch'].includes(verb) ? 'forbidden' : undefined,
	);
	const peerPods = start();
	await peerPods.registerVm(vm, unconditional);
	peerPods.unregisterVm(vm);
	await api.until(() => listAt(found(api), 'metadata', 'finalizers').length === 0);
	api.delete('pods', 'nginx', 'default');
	await api.until(() => found(api) === undefined);
	t.pass();
});

test('a VM whose pod is gone, or was replaced by another pod with the same name, is not registered', async t => {
	const {api, podUid, start} = await fixture(t);
	const peerPods = start();
	await peerPods.registerVm(
		{...vm, instanceName: 'podvm-a-11111111', pod: {name: 'gone', namespace: 'default'}},
		unconditional,
	);
	await peerPods.registerVm(
		{...vm, instanceName: 'podvm-b-22222222', pod: {...vm.pod, uid: 'of-an-earlier-one'}},
		unconditional,
	);
	await peerPods.registerVm({...vm, pod: {...vm.pod, uid: podUid}}, unconditional);
	t.deepEqual(
		api.list('peerpods').map(({metadata}) => metadata.name),
		[vm.instanceName],
	);
});

test('a PeerPod that disappeared is created again, and existing PeerPods cost one list request', async t => {
	const {api, start} = await fixture(t);
	const peerPods = start();
	await peerPods.registerVm(vm, unconditional);
	api.put('peerpods', {metadata: {name: vm.instanceName, namespace: 'default', finalizers: []}});
	api.delete('peerpods', vm.instanceName, 'default');
	peerPods.reconcile([vm]);
	await api.until(() => found(api));
	const {length} = api.calls;
	peerPods.reconcile([vm]);
	await api.until(() => api.calls.length > length);
	await peerPods[Symbol.asyncDispose]();
	t.deepEqual(
		api.calls.slice(length).map(({verb, plural}) => `${verb} ${plural}`),
		['list peerpods'],
	);
});

test('sets that arrive while the API server is unreachable cost one round, with the newest set', async t => {
	const {api, start} = await fixture(t);
	const [first, second] = [
		{...vm, instanceName: 'podvm-nginx-00000001'},
		{...vm, instanceName: 'podvm-nginx-00000002'},
	];
	const peerPods = start();
	{
		using _ = api.fault(() => 'drop');
		for (let set = 0; set < 50; set++) {
			peerPods.reconcile([first]);
		}

		await api.until(() => api.calls.length > 10);
		peerPods.reconcile([second]);
	}

	const {length} = api.calls;
	await api.until(() => found(api, second.instanceName));
	await peerPods[Symbol.asyncDispose]();
	t.is(found(api, first.instanceName), undefined);
	t.true(api.calls.slice(length).filter(({verb}) => verb === 'list').length <= 2);
});

test('without permission to list, PeerPods are still created', async t => {
	const {api, start} = await fixture(t);
	using _ = api.fault(({plural, verb}) =>
		plural === 'peerpods' && !['create', 'patch'].includes(verb) ? 'forbidden' : undefined,
	);
	start().reconcile([vm]);
	await api.until(() => found(api));
	t.pass();
});

test('an unreachable KVM host does not prevent registrations', async t => {
	const {api, start} = await fixture(t);
	const earlier = start();
	await earlier.registerVm({...vm, instanceName: 'podvm-gone-00000001'}, unconditional);
	await earlier[Symbol.asyncDispose]();
	const peerPods = start({
		leftOverMs: 0,
		async vmNames() {
			throw new Error('the host is away');
		},
	});
	peerPods.reconcile([vm]);
	await api.until(() => found(api));
	t.truthy(found(api, 'podvm-gone-00000001'));
});

test('a static pod is known by the UID that the API server gave its mirror', async t => {
	const {api, start} = await fixture(t);
	const {metadata} = api.put('pods', {
		metadata: {
			name: 'static',
			namespace: 'default',
			annotations: {'kubernetes.io/config.mirror': 'of-the-kubelet'},
		},
	});
	await start().registerVm(
		{...vm, pod: {name: 'static', namespace: 'default', uid: 'of-the-kubelet'}},
		unconditional,
	);
	t.is(textAt(listAt(found(api), 'metadata', 'ownerReferences')[0], 'uid'), metadata.uid);
});

test('PeerPods of an earlier run are withdrawn only if their VM does not exist', async t => {
	const {api, vms, start} = await fixture(t);
	const earlier = start();
	const elsewhere = start({node: 'worker-1'});
	const otherCluster = start({cluster: 'west'});
	const claimOn = async (peerPods: PeerPods, instanceName: string): Promise<void> =>
		peerPods.registerVm({...vm, instanceName}, unconditional);
	await claimOn(earlier, 'podvm-gone-00000001');
	await claimOn(earlier, 'podvm-runs-00000002');
	await claimOn(elsewhere, 'podvm-elsewhere-00000003');
	await claimOn(otherCluster, 'podvm-west-00000004');
	await earlier[Symbol.asyncDispose]();
	vms.push('podvm-runs-00000002');
	const lists = (): number => api.calls.filter(({verb}) => verb === 'list').length;
	const young = start();
	young.reconcile([]);
	await api.until(() => lists() === 1);
	await young[Symbol.asyncDispose]();
	t.is(api.list('peerpods').length, 4);
	const later = start({now: () => Date.now() + 3_600_000});
	await claimOn(later, 'podvm-starts-00000005');
	// A daemon that was just started does not know its sandboxes yet.
	t.is(lists(), 1);
	later.reconcile([]);
	await api.until(() => found(api, 'podvm-gone-00000001') === undefined);
	await later[Symbol.asyncDispose]();
	t.deepEqual(
		api.list('peerpods').map(({metadata}) => metadata.name),
		['podvm-elsewhere-00000003', 'podvm-runs-00000002', 'podvm-starts-00000005', 'podvm-west-00000004'],
	);
});

import test, {type ExecutionContext} from 'ava';
import {newPeerPod, peerPodName} from '../../src/kubernetes/peer-pod.ts';
import {PeerPods} from '../../src/kubernetes/peer-pods.ts';
import {PodPresence} from '../../src/kubernetes/pod-presence.ts';
import {silentLogger} from '../../src/core/log.ts';
import type {RegisteredVm, Presence} from '../../src/sandbox/ports.ts';
import {peerPodKind, type Fault, type TestApiServer} from '../support/api-server.ts';
import {recordingLog} from '../support/recording-log.ts';
import {clientOf, testCluster} from './cluster.ts';

const daemon = {node: 'worker-0', cluster: 'east'};
const vm: RegisteredVm = {
	sandboxId: '1a2b3c4d'.repeat(8),
	instanceName: 'podvm-nginx-1a2b3c4d',
	pod: {name: 'nginx', namespace: 'default'},
};
const otherUid = '00000000-1111-4222-8333-444444444444';

interface Fixture {
	readonly api: TestApiServer;
	readonly podUid: string;
	readonly log: ReturnType<typeof recordingLog>;
	readonly ask: (pod?: Partial<RegisteredVm['pod']>) => Promise<Presence>;
	/** As a new daemon would: nothing is remembered. */
	readonly restart: () => Promise<void>;
	readonly calls: () => string[];
}

async function fixture(t: ExecutionContext, timeoutMs = 60_000): Promise<Fixture> {
	const {api, signal} = await testCluster(t);
	api.define(peerPodKind);
	const {
		metadata: {uid: podUid},
	} = api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
	const client = clientOf(api);
	const log = recordingLog();
	let peerPods = new PeerPods({client, ...daemon, vmNames: async () => [], log: silentLogger});
	const presence = new PodPresence({
		client,
		node: daemon.node,
		ownerUid: async (each, limit) => peerPods.ownerUid(each, limit),
		timeoutMs,
		log,
	});
	t.teardown(async () => {
		await peerPods[Symbol.asyncDispose]();
		client[Symbol.dispose]();
	});
	return {
		api,
		podUid,
		log,
		ask: async pod => presence.of({...vm, pod: {...vm.pod, ...pod}}, signal),
		async restart() {
			await peerPods[Symbol.asyncDispose]();
			peerPods = new PeerPods({client, ...daemon, vmNames: async () => [], log: silentLogger});
		},
		calls: () => api.calls.map(({verb, plural}) => `${verb} ${plural}`),
	};
}

function recordOwner(api: TestApiServer, uid: string): void {
	const {metadata, ...rest} = newPeerPod(vm, uid, daemon);
	api.put('peerpods', {...rest, metadata: {...metadata, ...peerPodName(vm)}});
}

function replacePod(api: TestApiServer): void {
	api.delete('pods', 'nginx', 'default');
	api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
}

test('the pod with its UID is present; without it, or with another one, it is gone', async t => {
	const {api, podUid, ask, calls} = await fixture(t);
	t.is(await ask({uid: podUid}), 'present');
	t.is(await ask({uid: otherUid}), 'gone');
	api.delete('pods', 'nginx', 'default');
	t.is(await ask({uid: podUid}), 'gone');
	t.is(await ask(), 'gone');
	t.deepEqual(new Set(calls()), new Set(['get pods']));
});

test('if kata sent no UID, the owner of the PeerPod is read once, also after a restart', async t => {
	const {api, podUid, ask, restart, calls} = await fixture(t);
	recordOwner(api, podUid);
	t.is(await ask(), 'present');
	replacePod(api);
	t.is(await ask(), 'gone');
	t.is(await ask(), 'gone');
	t.deepEqual(calls(), ['get pods', 'get peerpods', 'get pods', 'get pods']);
	await restart();
	t.is(await ask(), 'gone');
});

test('without any UID a pod of the same name is present, also when PeerPods are unknown or forbidden', async t => {
	const {api, ask} = await fixture(t);
	t.is(await ask(), 'present');
	api.undefine(peerPodKind);
	t.is(await ask(), 'present');
	api.define(peerPodKind);
	recordOwner(api, otherUid);
	using forbidden = api.fault(({plural}) => (plural === 'peerpods' ? 'forbidden' : undefined));
	t.is(await ask(), 'present');
	forbidden[Symbol.dispose]();
	using _ = api.fault(({plural}) => (plural === 'peerpods' ? 'error' : undefined));
	t.is(await ask(), 'unknown');
});

test('failures, refusals and a 404 of a proxy prove nothing, and a refusal is logged once', async t => {
	const {api, podUid, ask, log} = await fixture(t, 300);
	api.delete('pods', 'nginx', 'default');
	const faults: Fault[] = [
		'forbidden',
		'forbidden',
		'error',
		'drop',
		'silence',
		'garbage',
		'no-route',
		{retryAfterSeconds: 20},
	];
	for (const fault of faults) {
		using _ = api.fault(() => fault);
		t.is(await ask({uid: podUid}), 'unknown', JSON.stringify(fault));
	}

	t.is(log.lines.filter(({level}) => level === 'warn').length, 1);
	t.is(await ask({uid: podUid}), 'gone');
	using _ = api.fault(() => 'forbidden');
	t.is(await ask({uid: podUid}), 'unknown');
	t.is(log.lines.filter(({level}) => level === 'warn').length, 2);
});

test("static pods are always 'unknown', whether their mirror exists or not", async t => {
	const {api, ask} = await fixture(t);
	const kubeletUid = '0123456789abcdef0123456789abcdef';
	t.is(await ask({uid: kubeletUid}), 'unknown');
	t.is(await ask({name: 'static-worker-0'}), 'unknown');
	api.put('pods', {
		metadata: {name: 'nginx', namespace: 'default', annotations: {'kubernetes.io/config.mirror': kubeletUid}},
	});
	t.is(await ask({uid: kubeletUid}), 'unknown');
	t.is(await ask(), 'unknown');
	t.is(await ask({uid: otherUid}), 'unknown');
});

import test from 'ava';
import {controller} from '../../src/cli/controller.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import type {CommandContext} from '../../src/cli/command.ts';
import {newPeerPod} from '../../src/kubernetes/peer-pod.ts';
import {peerPodKind, TestApiServer} from '../support/api-server.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';

const nowhere = {write: () => undefined};
const context: CommandContext = {
	env: {},
	flags: {},
	operands: [],
	host: {hostname: 'controller-0'},
	version: '0',
	out: nowhere,
	err: nowhere,
	logTo: 2,
	onLogger: () => undefined,
	processContext: {home: '/nonexistent', user: 'root', sshAgentSocket: undefined},
};

test('the controller deletes the VMs of a lost node through a real libvirt, and releases its lease', async t => {
	await using api = await TestApiServer.start();
	await using libvirtd = await startTestLibvirtd();
	api.define(peerPodKind);
	const instanceName = 'podvm-nginx-1a2b3c4d';
	const pod = api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
	const peerPod = newPeerPod(
		{sandboxId: '1a2b3c4d', instanceName, pod: {name: 'nginx', namespace: 'default'}},
		pod.metadata.uid,
		{node: 'lost', cluster: 'east'},
	);
	api.put('peerpods', {...peerPod, metadata: {...peerPod.metadata, name: instanceName, namespace: 'default'}});
	api.delete('pods', 'nginx', 'default');
	const ending = new AbortController();
	const env = {
		...api.environment,
		LIBVIRT_URI: `test+unix:///default?socket=${libvirtd.socketPath}`,
		CLUSTER_ID: 'east',
		ABANDONED_GRACE: '5ms',
		LOG_LEVEL: 'silent',
	};
	const running = controller(
		{...context, env, processContext: {...context.processContext, serviceAccountDirectory: api.accountDirectory}},
		ending.signal,
	);
	await api.until(() => api.find('peerpods', instanceName, 'default') === undefined);
	ending.abort(new Error('enough'));
	t.is(await running, 0);
	t.like(api.find('leases', 'cloud-api-adaptor-controller', api.namespace), {spec: {holderIdentity: ''}});
});

test('outside of a cluster, the controller fails with a remedy', async t => {
	const error = await t.throwsAsync(
		controller({...context, env: {CLUSTER_ID: 'east'}}, AbortSignal.timeout(60_000)),
		{instanceOf: AdaptorError},
	);
	t.is(error.code, 'failed-precondition');
});

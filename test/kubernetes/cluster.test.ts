import {setTimeout as delay} from 'node:timers/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {textAt} from '../../src/core/json.ts';
import {joinCluster, type ClusterOptions} from '../../src/kubernetes/cluster.ts';
import {extendedResource} from '../../src/kubernetes/node-capacity.ts';
import {silentLogger} from '../../src/core/log.ts';
import {peerPodKind, TestApiServer} from '../support/api-server.ts';
import {testCluster} from './cluster.ts';

function optionsFor(api: TestApiServer): ClusterOptions {
	return {
		server: api.address,
		serviceAccountDirectory: api.accountDirectory,
		node: 'worker-0',
		cluster: 'east',
		limitPerNode: 7,
		podUid: undefined,
		daemonSet: 'osc-caa-ds',
		vmNames: async () => [],
		log: silentLogger,
	};
}

test('a daemon that joins advertises its node, registers VMs, and knows its limit', async t => {
	const {api, signal} = await testCluster(t);
	api.define(peerPodKind);
	api.put('nodes', {metadata: {name: 'worker-0'}});
	api.put('pods', {metadata: {name: 'nginx', namespace: 'default'}});
	await using cluster = await joinCluster(optionsFor(api));
	t.is(cluster.limit, 7);
	await cluster.registerVm(
		{sandboxId: 'a'.repeat(64), instanceName: 'podvm-nginx-aaaaaaaa', pod: {name: 'nginx', namespace: 'default'}},
		signal,
	);
	await api.until(() => api.find('peerpods', 'podvm-nginx-aaaaaaaa', 'default'));
	await api.until(() => textAt(api.find('nodes', 'worker-0'), 'status', 'capacity', extendedResource) === '7');
});

test('with a negative limit, the node is not patched and nothing is limited', async t => {
	const {api} = await testCluster(t);
	api.define(peerPodKind);
	api.put('nodes', {metadata: {name: 'worker-0'}});
	await using cluster = await joinCluster({...optionsFor(api), limitPerNode: 'unlimited'});
	t.is(cluster.limit, undefined);
	cluster.reconcile([]);
	await api.until(() => api.calls.length > 0);
	t.deepEqual(new Set(api.calls.map(({plural}) => plural)), new Set(['peerpods']));
});

test('joining and leaving do not need a reachable API server', async t => {
	const api = await TestApiServer.start();
	t.teardown(async () => api[Symbol.asyncDispose]());
	using _ = api.fault(() => 'drop');
	const cluster = await joinCluster(optionsFor(api));
	t.is(cluster.limit, 7);
	await t.notThrowsAsync(cluster[Symbol.asyncDispose]());
});

test('an API server that never answers delays a start by four seconds in total', async t => {
	const {api, signal} = await testCluster(t);
	using _ = api.fault(() => 'silence');
	await using cluster = await joinCluster(optionsFor(api));
	const pod = {name: 'nginx', namespace: 'default'};
	const start = Promise.all([
		cluster.pullCredentials(pod, signal),
		cluster.registerVm({sandboxId: 'a'.repeat(64), instanceName: 'podvm-nginx-aaaaaaaa', pod}, signal),
	]);
	// Not by the clock: timers end in their order, however slow the machine.
	const outcome = await Promise.race([start, delay(6000, 'too late', {ref: false})]);
	t.deepEqual(outcome, [undefined, undefined]);
});

test('without a service account there is no cluster to join', async t => {
	const {api} = await testCluster(t);
	const error = await t.throwsAsync(joinCluster({...optionsFor(api), serviceAccountDirectory: '/nonexistent'}), {
		instanceOf: AdaptorError,
	});
	t.is(error.code, 'failed-precondition');
});

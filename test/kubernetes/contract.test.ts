import {randomUUID} from 'node:crypto';
import {setImmediate as turn} from 'node:timers/promises';
import test from 'ava';
import {joinCluster} from '../../src/kubernetes/cluster.ts';
import {textAt} from '../../src/core/json.ts';
import {silentLogger} from '../../src/core/log.ts';
import {clusterContract} from '../contract/cluster.ts';
import {peerPodKind, TestApiServer} from '../support/api-server.ts';
import {InMemoryCluster} from '../support/in-memory-cluster.ts';

clusterContract(test, 'a cluster by its API server', async () => {
	const api = await TestApiServer.start();
	api.define(peerPodKind);
	api.put('serviceaccounts', {metadata: {name: 'default', namespace: 'default'}});
	const cluster = await joinCluster({
		server: api.address,
		serviceAccountDirectory: api.accountDirectory,
		node: 'worker-0',
		cluster: 'east',
		limitPerNode: 'unlimited',
		podUid: undefined,
		daemonSet: 'osc-caa-ds',
		vmNames: async () => [],
		leftOverMs: 0,
		log: silentLogger,
	});
	return {
		cluster,
		add: ({name, namespace}) => api.put('pods', {metadata: {name, namespace}}).metadata.uid,
		remove: ({name, namespace}) => api.delete('pods', name, namespace),
		claims: () => api.list('peerpods').map(({metadata}) => metadata.name),
		reasons: ({name}) =>
			api
				.list('events')
				.filter(event => textAt(event, 'involvedObject', 'name') === name)
				.map(event => textAt(event, 'reason') ?? ''),
		async until(condition) {
			await api.until(condition);
		},
		silence: () => api.fault(() => 'silence'),
		async [Symbol.asyncDispose]() {
			await cluster[Symbol.asyncDispose]();
			await api[Symbol.asyncDispose]();
		},
	};
});

clusterContract(test, 'a cluster in memory', async () => {
	const cluster = new InMemoryCluster();
	cluster.podUids = new Map();
	return {
		cluster,
		add({name, namespace}) {
			const uid = randomUUID();
			cluster.podUids?.set(`${namespace}/${name}`, uid);
			return uid;
		},
		remove: ({name, namespace}) => void cluster.podUids?.delete(`${namespace}/${name}`),
		claims: () => [...cluster.claims.keys()],
		reasons: ({name}) => cluster.events.filter(({pod}) => pod.name === name).map(({reason}) => reason),
		async until(condition) {
			while (!condition()) {
				await turn();
			}
		},
		silence() {
			const {promise, resolve} = Promise.withResolvers<undefined>();
			cluster.gate = promise.then(() => undefined);
			return {[Symbol.dispose]: () => resolve(undefined)};
		},
		async [Symbol.asyncDispose]() {
			// Holds nothing.
		},
	};
});

import {rename, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {inspect} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {isAlreadyExists, isConflict, isNotFound, KubernetesError} from '../../src/kubernetes/errors.ts';
import {pods} from '../../src/kubernetes/pods.ts';
import {apiServerAddress, ServiceAccount} from '../../src/kubernetes/service-account.ts';
import {peerPodKind} from '../support/api-server.ts';
import {clientOf, testCluster} from './cluster.ts';
import {configMaps, nodes, peerPods} from './kinds.ts';

async function refusalOf(t: ExecutionContext, work: Promise<unknown>): Promise<KubernetesError> {
	const error = await t.throwsAsync(work, {instanceOf: KubernetesError});
	return error;
}

test('an object can be made, read, changed, listed and deleted', async t => {
	const {api, client, signal} = await testCluster(t);
	const name = {name: 'one', namespace: 'default'};
	const made = await client.create(
		configMaps,
		'default',
		{metadata: {name: 'one', labels: {app: 'x'}}, data: {a: '1'}},
		signal,
	);
	t.deepEqual(made.data, {a: '1'});
	t.is((await client.get(configMaps, name, signal)).metadata.uid, made.metadata.uid);
	const patched = await client.patch(configMaps, name, {merge: {data: {a: null, b: '2'}}}, signal);
	t.deepEqual(patched.data, {b: '2'});
	t.not(patched.metadata.resourceVersion, made.metadata.resourceVersion);
	t.deepEqual(
		(await client.list(configMaps, {namespace: 'default', labelSelector: 'app=x'}, signal)).items.map(
			({metadata}) => metadata.name,
		),
		['one'],
	);
	t.deepEqual((await client.list(configMaps, {namespace: 'default', labelSelector: 'app=y'}, signal)).items, []);
	await client.delete(configMaps, name, {uid: made.metadata.uid}, signal);
	t.is(api.find('configmaps', 'one', 'default'), undefined);
	t.true(isNotFound(await refusalOf(t, client.get(configMaps, name, signal))));
});

test('a list of many pages is complete', async t => {
	const {api, client, signal} = await testCluster(t);
	for (let number = 0; number < 601; number++) {
		api.put('configmaps', {metadata: {name: `map-${number}`, namespace: 'default'}});
	}

	const {items} = await client.list(configMaps, {}, signal);
	t.is(new Set(items.map(({metadata}) => metadata.name)).size, 601);
	t.is(api.calls.length, 3);
});

test('refusals have distinct errors: exists, conflict, other UID, failed test, missing kind', async t => {
	const {api, client, signal} = await testCluster(t);
	const {metadata} = await client.create(configMaps, 'default', {metadata: {name: 'one'}}, signal);
	const name = {name: 'one', namespace: 'default'};
	t.true(
		isAlreadyExists(await refusalOf(t, client.create(configMaps, 'default', {metadata: {name: 'one'}}, signal))),
	);
	api.put('configmaps', {metadata: {name: 'one', namespace: 'default'}, data: {a: '1'}});
	const stale = await refusalOf(
		t,
		client.patch(
			configMaps,
			name,
			{merge: {metadata: {resourceVersion: metadata.resourceVersion}, data: {}}},
			signal,
		),
	);
	t.true(isConflict(stale));
	t.is(stale.code, 'aborted');
	t.true(isConflict(await refusalOf(t, client.delete(configMaps, name, {uid: 'another'}, signal))));
	const failed = await refusalOf(
		t,
		client.patch(
			configMaps,
			name,
			{
				json: [
					{op: 'test', path: '/data/a', value: '2'},
					{op: 'remove', path: '/data/a'},
				],
			},
			signal,
		),
	);
	t.like(failed, {status: 422, code: 'invalid-argument'});
	const unknown = await refusalOf(t, client.list(peerPods, {}, signal));
	t.like(unknown, {status: 404, isKindMissing: true});
	api.define(peerPodKind);
	t.like(await refusalOf(t, client.get(peerPods, name, signal)), {status: 404, isKindMissing: false});
	using _ = api.fault(() => 'forbidden');
	t.like(await refusalOf(t, client.get(configMaps, name, signal)), {
		status: 403,
		code: 'permission-denied',
		statusReason: 'Forbidden',
	});
});

test('the status of an object is changed through its subresource only', async t => {
	const {api, client, signal} = await testCluster(t);
	api.put('nodes', {metadata: {name: 'worker-0'}, status: {capacity: {cpu: '4'}}});
	const value = {path: '/status/capacity/kata.peerpods.io~1vm', value: '3'};
	const asMain = await client.patch(nodes, {name: 'worker-0'}, {json: [{op: 'add', ...value}]}, signal);
	t.deepEqual(asMain.capacity, {cpu: '4'});
	const asStatus = await client.patch(nodes, {name: 'worker-0'}, {json: [{op: 'add', ...value}]}, signal, 'status');
	t.deepEqual(asStatus.capacity, {cpu: '4', 'kata.peerpods.io/vm': '3'});
});

test('a token that was replaced is followed without an error, and so is a CA', async t => {
	const {api, client, signal} = await testCluster(t);
	await client.list(nodes, {}, signal);
	await api.rotateToken();
	// As in production: what was read is remembered for a while, until the server rejects it.
	using patient = clientOf(api, {account: new ServiceAccount(api.accountDirectory)});
	await patient.list(nodes, {}, signal);
	await api.rotateToken();
	await t.notThrowsAsync(patient.list(nodes, {}, signal));
	const caFile = join(api.accountDirectory, 'ca.crt');
	await rename(caFile, `${caFile}.kept`);
	await writeFile(caFile, '');
	api.closeIdle();
	t.is((await refusalOf(t, client.list(nodes, {}, signal))).code, 'unavailable');
	await rename(`${caFile}.kept`, caFile);
	await t.notThrowsAsync(client.list(nodes, {}, signal));
});

test('a token that is never accepted ends in one error that does not show it', async t => {
	const {api, client, signal} = await testCluster(t);
	await writeFile(join(api.accountDirectory, 'token'), 'hunter2-token');
	const error = await refusalOf(t, client.list(nodes, {}, signal));
	t.like(error, {status: 401, code: 'unauthenticated'});
	t.false(inspect(error, {depth: 9, showHidden: true}).includes('hunter2'));
});

test('files of the service account that are missing are named', async t => {
	const {api, client, signal} = await testCluster(t);
	await rm(join(api.accountDirectory, 'token'));
	const error = await t.throwsAsync(client.list(nodes, {}, signal), {instanceOf: AdaptorError});
	t.is(error.code, 'failed-precondition');
	t.regex(error.message, /service-account-[^"]*\/token/v);
});

test('a request to a server that is busy, fails or hangs up is repeated', async t => {
	const {api, client, signal} = await testCluster(t);
	for (const fault of ['busy', 'error', 'drop', 'drop-after'] as const) {
		let left = 3;
		using _ = api.fault(() => (left-- > 0 ? fault : undefined));
		await t.notThrowsAsync(client.list(nodes, {}, signal), fault);
	}

	using _ = api.fault(() => 'error');
	t.like(await refusalOf(t, client.list(nodes, {}, signal)), {status: 500, code: 'unavailable'});
});

test('a creation that may have been executed is not repeated; after a "busy" answer it is', async t => {
	const {api, client, signal} = await testCluster(t);
	const make = async (): Promise<unknown> =>
		client.create(configMaps, 'default', {metadata: {generateName: 'map-'}}, signal);
	{
		using _ = api.fault(() => 'drop-after');
		t.true((await refusalOf(t, make())).mayHaveBeenExecuted);
		t.is(api.list('configmaps').length, 1);
	}

	let left = 2;
	using _ = api.fault(() => (left-- > 0 ? 'busy' : undefined));
	await make();
	t.is(api.list('configmaps').length, 2);
});

test('a request to a server that never answers ends at the deadline, and an aborted call ends at once', async t => {
	const {api, client, signal} = await testCluster(t);
	using _ = api.fault(() => 'silence');
	using hasty = clientOf(api, {requestTimeoutMs: 20});
	t.like(await refusalOf(t, hasty.list(nodes, {}, signal)), {code: 'unavailable', mayHaveBeenExecuted: true});
	const caller = new AbortController();
	const reason = new Error('no longer wanted');
	const before = api.calls.length;
	const call = client.list(nodes, {}, caller.signal);
	await api.until(() => api.calls.length > before);
	caller.abort(reason);
	t.is(await t.throwsAsync(call), reason);
});

test('an unused connection is closed after some time; a connection with a quiet watch is not', async t => {
	const {api, signal} = await testCluster(t);
	using client = clientOf(api, {idleTimeoutMs: 20});
	const events = client.watch(nodes, {}, signal);
	t.like((await events.next()).value, {type: 'all'});
	const next = events.next();
	await api.until(() => api.watches === 1);
	await client.list(nodes, {}, signal);
	await api.until(() => api.connections === 1);
	api.put('nodes', {metadata: {name: 'worker-0'}});
	t.like((await next).value, {type: 'changed'});
	t.is(api.calls.filter(({verb}) => verb === 'watch').length, 1);
	await events.return();
	await api.until(() => api.connections === 0);
});

test('an answer that is too large, or no JSON, is an error that does not show it', async t => {
	const {api, client, signal} = await testCluster(t);
	api.put('configmaps', {metadata: {name: 'big', namespace: 'default'}, data: {a: 'x'.repeat(5000)}});
	using narrow = clientOf(api, {maxResponseBytes: 4000});
	t.is((await refusalOf(t, narrow.get(configMaps, {name: 'big', namespace: 'default'}, signal))).code, 'data-loss');
	using _ = api.fault(() => 'garbage');
	const error = await refusalOf(t, client.get(configMaps, {name: 'big', namespace: 'default'}, signal));
	t.is(error.code, 'data-loss');
	t.false(inspect(error, {depth: 9, showHidden: true}).includes('hunter2'));
});

test('a name that would lead to another path is refused', async t => {
	const {api, client, signal} = await testCluster(t);
	for (const name of ['', '..', 'a/b', 'a%2fb', 'a\nb']) {
		const error = await t.throwsAsync(client.get(configMaps, {name, namespace: 'default'}, signal), {
			instanceOf: AdaptorError,
		});
		t.is(error.code, 'invalid-argument', name);
	}

	t.is(api.calls.length, 0);
});

test('a server that cannot be reached is an error that says where', async t => {
	const {api, client, signal} = await testCluster(t);
	const {port} = api.address;
	await api[Symbol.asyncDispose]();
	const error = await t.throwsAsync(client.list(nodes, {}, signal), {instanceOf: AdaptorError});
	t.true(error.code === 'failed-precondition' || error.message.includes(String(port)));
});

test('the address comes from the environment, and outside of a cluster there is none', t => {
	t.deepEqual(apiServerAddress({KUBERNETES_SERVICE_HOST: 'fd00::1', KUBERNETES_SERVICE_PORT: '443'}), {
		host: 'fd00::1',
		port: 443,
	});
	for (const env of [
		{},
		{KUBERNETES_SERVICE_HOST: '', KUBERNETES_SERVICE_PORT: '443'},
		{KUBERNETES_SERVICE_HOST: 'h'},
		{KUBERNETES_SERVICE_HOST: 'h', KUBERNETES_SERVICE_PORT: 'x'},
	]) {
		t.is(apiServerAddress(env), undefined);
	}
});

test('if only the metadata of an object is needed, only the metadata is requested', async t => {
	const {api, client, signal} = await testCluster(t);
	const {metadata} = api.put('pods', {
		metadata: {name: 'web', namespace: 'default', annotations: {a: 'b'}},
		spec: {containers: 'x'.repeat(2_000_000)},
	});
	t.like(await client.get(pods, {name: 'web', namespace: 'default'}, signal), {
		metadata: {uid: metadata.uid, annotations: {a: 'b'}},
	});
	t.like(api.calls, [{plural: 'pods', isMetadataOnly: true}]);
});

test('an object over the size limit is refused before parsing, and the client stays usable', async t => {
	const {api, client, signal} = await testCluster(t);
	const bounded = {...configMaps, bounds: {bytes: 10_000, parts: 100, depth: 10}};
	const deep = Array.from({length: 11}, () => 0).reduce<unknown>(inner => [inner], 0);
	for (const [name, data, words] of [
		['bytes', 'x'.repeat(10_000), /more than 10000 bytes/],
		['parts', Array.from({length: 100}, () => 1), /more than 100 values/],
		['depth', deep, /deeper than 10 levels/],
	] as const) {
		api.put('configmaps', {metadata: {name, namespace: 'default'}, data});
		const error = await refusalOf(t, client.get(bounded, {name, namespace: 'default'}, signal));
		t.is(error.code, 'data-loss');
		t.regex(error.what, words);
	}

	t.is(api.calls.length, 3);
	api.put('configmaps', {metadata: {name: 'small', namespace: 'default'}, data: {}});
	t.is((await client.get(bounded, {name: 'small', namespace: 'default'}, signal)).metadata.name, 'small');
});

import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import type {WatchEvent} from '../../src/kubernetes/client.ts';
import {KubernetesError} from '../../src/kubernetes/errors.ts';
import {lines} from '../../src/kubernetes/watch.ts';
import {peerPodKind} from '../support/api-server.ts';
import {recordingLog} from '../support/recording-log.ts';
import {clientOf, testCluster} from './cluster.ts';
import {configMaps, peerPods} from './kinds.ts';

const inDefault = (name: string, data = {}): {metadata: {name: string; namespace: string}; data: object} => ({
	metadata: {name, namespace: 'default'},
	data,
});

/** An event in short: `all a,b`, `changed c`, `deleted c`. */
async function next<Fields>(t: ExecutionContext, watch: AsyncGenerator<WatchEvent<Fields>, void>): Promise<string> {
	const {value} = await watch.next();
	if (!value) {
		t.fail('the watch has ended');
		return '';
	}

	switch (value.type) {
		case 'all': {
			return `all ${value.objects.map(({metadata}) => metadata.name).join()}`;
		}

		case 'refused': {
			return `refused ${String(value.error instanceof KubernetesError ? value.error.status : value.error)}`;
		}

		case 'changed':
		case 'deleted': {
			return `${value.type} ${value.object.metadata.name}`;
		}
	}
}

test('a watch yields the existing objects, then each change, until its signal aborts', async t => {
	const {api, client} = await testCluster(t);
	const ending = new AbortController();
	api.put('configmaps', inDefault('one'));
	const watch = client.watch(configMaps, {namespace: 'default'}, ending.signal);
	t.is(await next(t, watch), 'all one');
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	api.put('configmaps', {metadata: {name: 'elsewhere', namespace: api.namespace}});
	api.put('configmaps', inDefault('two'));
	t.is(await coming, 'changed two');
	api.put('configmaps', inDefault('one', {a: '1'}));
	t.is(await next(t, watch), 'changed one');
	api.delete('configmaps', 'one', 'default');
	t.is(await next(t, watch), 'deleted one');
	const last = watch.next();
	ending.abort();
	t.deepEqual(await last, {value: undefined, done: true});
	await api.until(() => api.watches === 0);
	t.pass();
});

test('nothing is missed between two connections, whichever way the first ends', async t => {
	const {api, client, signal} = await testCluster(t);
	const watch = client.watch(configMaps, {}, signal);
	t.is(await next(t, watch), 'all ');
	for (const how of ['end', 'drop'] as const) {
		const coming = next(t, watch);
		await api.until(() => api.watches === 1);
		api.endWatches(how);
		api.put('configmaps', inDefault(how));
		t.is(await coming, `changed ${how}`);
	}

	t.is(api.calls.filter(({verb}) => verb === 'list').length, 1);
});

test('a watch that missed too much lists again', async t => {
	const {api, client, signal} = await testCluster(t);
	const watch = client.watch(configMaps, {}, signal);
	t.is(await next(t, watch), 'all ');
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	using refused = api.fault(({verb}) => (verb === 'watch' ? 'error' : undefined));
	api.endWatches('drop');
	api.put('configmaps', inDefault('unseen'));
	api.compact();
	refused[Symbol.dispose]();
	t.is(await coming, 'all unseen');
});

test('after a bookmark, no new list is needed when the server has deleted older history', async t => {
	const {api, client, signal} = await testCluster(t);
	api.put('configmaps', inDefault('one'));
	const watch = client.watch(configMaps, {fieldSelector: 'metadata.name=one'}, signal);
	t.is(await next(t, watch), 'all one');
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	api.put('configmaps', inDefault('other'));
	api.compact();
	api.bookmark();
	api.endWatches('end');
	await api.until(() => api.calls.filter(({verb}) => verb === 'watch').length >= 2 && api.watches === 1);
	api.put('configmaps', inDefault('one', {a: '1'}));
	t.is(await coming, 'changed one');
	t.is(api.calls.filter(({verb}) => verb === 'list').length, 1);
});

test('a watch that fails is retried until it succeeds, and the failure is logged once', async t => {
	const log = recordingLog();
	const {api, client, signal} = await testCluster(t, {log});
	using failing = api.fault(({verb}) => (verb === 'list' ? 'error' : undefined));
	const watch = client.watch(configMaps, {}, signal);
	const first = next(t, watch);
	await api.until(() => api.calls.length > 15);
	failing[Symbol.dispose]();
	t.is(await first, 'all ');
	t.deepEqual(told(log), [lost]);
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	api.put('configmaps', inDefault('one'));
	t.is(await coming, 'changed one');
	t.deepEqual(told(log), [lost, back]);
});

const lost = 'warn watch of the Kubernetes API lost; retrying';
const back = 'info watch of the Kubernetes API restored';

function told(log: ReturnType<typeof recordingLog>): string[] {
	return log.lines.filter(({level}) => level !== 'debug').map(({level, message}) => `${level} ${message}`);
}

test('a watch counts as restored when it has delivered an event or has lasted, not when it is opened', async t => {
	const log = recordingLog();
	const {api, client, signal} = await testCluster(t, {log, settleMs: 3_600_000});
	using away = api.fault(() => 'drop');
	const watch = client.watch(configMaps, {}, signal);
	const first = next(t, watch);
	await api.until(() => api.calls.length > 10);
	away[Symbol.dispose]();
	t.is(await first, 'all ');
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	t.deepEqual(told(log), [lost]);
	api.bookmark();
	api.put('configmaps', inDefault('one'));
	t.is(await coming, 'changed one');
	t.deepEqual(told(log), [lost, back]);

	const settledLog = recordingLog();
	using settling = clientOf(api, {log: settledLog, settleMs: 1});
	using awayAgain = api.fault(() => 'drop');
	const quiet = settling.watch(configMaps, {}, signal);
	const all = next(t, quiet);
	const {length} = api.calls;
	await api.until(() => api.calls.length > length + 10);
	awayAgain[Symbol.dispose]();
	t.is(await all, 'all one');
	void quiet.next();
	while (!told(settledLog).includes(back)) {
		await turn();
	}

	t.deepEqual(told(settledLog), [lost, back]);
});

test('an expired version does not cause a pause', async t => {
	const hour = 3_600_000;
	const {api, client, signal} = await testCluster(t, {watchRetryMs: [hour, hour]});
	const watch = client.watch(configMaps, {}, signal);
	t.is(await next(t, watch), 'all ');
	// As a server that was restarted: the watch is opened, and is told 410 at once.
	api.put('configmaps', inDefault('unseen'));
	api.compact();
	t.is(await next(t, watch), 'all unseen');
});

test('if every version is expired, the pauses grow', async t => {
	const {api, client, signal} = await testCluster(t, {watchRetryMs: [1, 3_600_000], settleMs: 3_600_000});
	const watch = client.watch(configMaps, {}, signal);
	let startedAt = 0;
	for (let lists = 0; lists < 11; lists++) {
		t.is(await next(t, watch), 'all ');
		startedAt ||= performance.now();
		api.compact();
	}

	// One list at once, then pauses of 1, 2, 4, ... 256 ms, each shortened by a fifth at most.
	t.true(performance.now() - startedAt >= 0.8 * 511 - 10);
});

test('a watch observes Retry-After', async t => {
	const {api, client, signal} = await testCluster(t);
	const watch = client.watch(configMaps, {}, signal);
	t.is(await next(t, watch), 'all ');
	let refusedAt = 0;
	let comeBackAt = 0;
	using _ = api.fault(({verb}) => {
		if (verb === 'watch' && refusedAt === 0) {
			refusedAt = performance.now();
			return {retryAfterSeconds: 1};
		}

		comeBackAt ||= performance.now();
		return undefined;
	});
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	api.put('configmaps', inDefault('one'));
	t.is(await coming, 'changed one');
	t.true(comeBackAt - refusedAt >= 990);
});

test('a missing or forbidden kind is reported at each refusal; `all` follows when it is allowed', async t => {
	const {api, client, signal} = await testCluster(t);
	const watch = client.watch(peerPods, {}, signal);
	t.is(await next(t, watch), 'refused 404');
	t.is(await next(t, watch), 'refused 404');
	api.define(peerPodKind);
	t.is(await next(t, watch), 'all ');
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	using forbidden = api.fault(() => 'forbidden');
	api.endWatches('end');
	t.is(await coming, 'refused 403');
	forbidden[Symbol.dispose]();
	t.is(await next(t, watch), 'all ');
});

test('ending the iteration early closes the connection', async t => {
	const {api, client, signal} = await testCluster(t);
	for await (const {type} of client.watch(configMaps, {}, signal)) {
		if (type === 'changed') {
			break;
		}

		void api.until(() => api.watches === 1).then(() => api.put('configmaps', inDefault('one')));
	}

	await api.until(() => api.watches === 0);
	t.pass();
});

async function all(source: AsyncIterable<string>): Promise<string[]> {
	const texts: string[] = [];
	for await (const text of source) {
		texts.push(text);
	}

	return texts;
}

test('any chunking of a stream gives the same lines', async t => {
	await fc.assert(
		fc.asyncProperty(
			fc.array(fc.string({minLength: 1}).map(text => JSON.stringify(text))),
			fc.array(fc.nat({max: 9})),
			async (texts, sizes) => {
				const bytes = Buffer.from(texts.map(text => `${text}\n`).join(''));
				async function* chunks(): AsyncGenerator<Buffer> {
					let start = 0;
					for (const size of sizes) {
						yield bytes.subarray(start, start + size);
						start += size;
					}

					yield bytes.subarray(Math.min(start, bytes.length));
				}

				t.deepEqual(await all(lines(chunks(), 10_000)), texts);
			},
		),
	);
});

test('a line without an end is refused when it is too long', async t => {
	async function* endless(): AsyncGenerator<Buffer> {
		for (;;) {
			yield Buffer.alloc(100, 'x');
		}
	}

	await t.throwsAsync(all(lines(endless(), 1000)), {instanceOf: KubernetesError});
});

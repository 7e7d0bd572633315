import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import type {WatchEvent} from '../../src/kubernetes/client.ts';
import {KubernetesError} from '../../src/kubernetes/errors.ts';
import {lines} from '../../src/kubernetes/watch.ts';
import {peerPodKind} from '../support/api-server.ts';
import {recordingLog} from '../support/recording-log.ts';
import {testCluster} from './cluster.ts';
import {configMaps, peerPods} from './kinds.ts';

const inDefault = (name: string, data = {}): {metadata: {name: string; namespace: string}; data: object} => ({metadata: {name, namespace: 'default'}, data});

/** An event in short: `all a,b`, `changed c`, `deleted c`. */
async function next<Fields>(t: ExecutionContext, watch: AsyncGenerator<WatchEvent<Fields>, void>): Promise<string> {
	const {value} = await watch.next();
	if (!value) {
		t.fail('the watch has ended');
		return '';
	}

	return value.type === 'all' ? `all ${value.objects.map(({metadata}) => metadata.name).join()}` : `${value.type} ${value.object.metadata.name}`;
}

test('a watch tells what is there, then each change, until its signal aborts', async t => {
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

test('one that missed too much lists again', async t => {
	const {api, client, signal} = await testCluster(t);
	const watch = client.watch(configMaps, {}, signal);
	t.is(await next(t, watch), 'all ');
	const coming = next(t, watch);
	await api.until(() => api.watches === 1);
	using refused = api.fault(({verb}) => verb === 'watch' ? 'error' : undefined);
	api.endWatches('drop');
	api.put('configmaps', inDefault('unseen'));
	api.compact();
	refused[Symbol.dispose]();
	t.is(await coming, 'all unseen');
});

test('a bookmark spares the list when the past is forgotten', async t => {
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

test('a watch that cannot be had is tried until it can, and says so once', async t => {
	const log = recordingLog();
	const {api, client, signal} = await testCluster(t, {log});
	using failing = api.fault(({verb}) => verb === 'list' ? 'error' : undefined);
	const watch = client.watch(configMaps, {}, signal);
	const first = next(t, watch);
	await api.until(() => api.calls.length > 15);
	failing[Symbol.dispose]();
	t.is(await first, 'all ');
	t.deepEqual(log.lines.filter(({level}) => level !== 'debug').map(({level, message}) => `${level} ${message}`), [
		'warn watch of the Kubernetes API was lost', 'info watch of the Kubernetes API is back',
	]);
});

test('a kind that is not there, and one that becomes forbidden, end the watch with the refusal', async t => {
	const {api, client, signal} = await testCluster(t);
	t.like(await t.throwsAsync(client.watch(peerPods, {}, signal).next(), {instanceOf: KubernetesError}), {isKindMissing: true});
	api.define(peerPodKind);
	const watch = client.watch(peerPods, {}, signal);
	t.is(await next(t, watch), 'all ');
	const coming = t.throwsAsync(watch.next(), {instanceOf: KubernetesError});
	await api.until(() => api.watches === 1);
	api.undefine(peerPodKind);
	t.true((await coming).isKindMissing);
});

test('a watch that is left early closes its connection', async t => {
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
	await fc.assert(fc.asyncProperty(fc.array(fc.string({minLength: 1}).map(text => JSON.stringify(text))), fc.array(fc.nat({max: 9})), async (texts, sizes) => {
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
	}));
});

test('a line without an end is refused when it is too long', async t => {
	async function* endless(): AsyncGenerator<Buffer> {
		for (;;) {
			yield Buffer.alloc(100, 'x');
		}
	}

	await t.throwsAsync(all(lines(endless(), 1000)), {instanceOf: KubernetesError});
});

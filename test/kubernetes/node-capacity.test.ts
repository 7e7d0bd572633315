import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {textAt} from '../../src/core/json.ts';
import {
	extendedResource,
	NodeCapacity,
	ownerAnnotation,
	wholeQuantity,
	type NodeCapacityOptions,
} from '../../src/kubernetes/node-capacity.ts';
import {silentLogger} from '../../src/core/log.ts';
import {peerPodConfigKind, type TestApiServer} from '../support/api-server.ts';
import {recordingLog} from '../support/recording-log.ts';
import {clientOf, testCluster} from './cluster.ts';
import {nodes} from './kinds.ts';

const node = 'worker-0';
const daemonSet = 'osc-caa-ds';
/** Longer than any test. */
const hour = 3_600_000;

function capacityOf(api: TestApiServer): string | undefined {
	return textAt(api.find('nodes', node), 'status', 'capacity', extendedResource);
}

function ownerOf(api: TestApiServer): string | undefined {
	return textAt(api.find('nodes', node), 'metadata', 'annotations', ownerAnnotation);
}

/** What was written to the node, in order. */
function patchedLimits(api: TestApiServer): Array<string | undefined> {
	return api.calls
		.filter(({verb}) => verb === 'patch')
		.map(({body}) => textAt(body, 'status', 'capacity', extendedResource));
}

function setLimit(api: TestApiServer, limit: string | null): void {
	api.put('peerpodconfigs', {metadata: {name: 'peerpodconfig-openshift', namespace: api.namespace}, spec: {limit}});
}

function addNode(api: TestApiServer): void {
	api.put('nodes', {metadata: {name: node}, spec: {podCIDR: '10.0.0.0/24'}, status: {capacity: {cpu: '4'}}});
}

interface Advertiser {
	readonly api: TestApiServer;
	readonly start: (options?: Partial<NodeCapacityOptions>) => NodeCapacity;
}

async function advertiser(t: ExecutionContext): Promise<Advertiser> {
	const {api} = await testCluster(t);
	addNode(api);
	api.put('daemonsets', {metadata: {name: daemonSet, namespace: api.namespace}});
	return {
		api,
		start(options = {}) {
			const client = clientOf(api, {...(options.log && {log: options.log})});
			const capacity = new NodeCapacity({
				client,
				node,
				daemonSet,
				namespace: api.namespace,
				configured: undefined,
				lookAgainMs: 5,
				retryMs: [1, 5],
				log: silentLogger,
				// A busy machine is not what is tested.
				withdrawTimeoutMs: 100_000,
				...options,
			});
			t.teardown(async () => {
				await capacity[Symbol.asyncDispose]();
				client[Symbol.dispose]();
			});
			return capacity;
		},
	};
}

test('without a setting, ten are advertised and no limit is enforced', async t => {
	const {api, start} = await advertiser(t);
	const capacity = start();
	await api.until(() => capacityOf(api) === '10');
	t.is(capacity.limit, undefined);
	t.is(textAt(api.find('nodes', node), 'status', 'capacity', 'cpu'), '4');
});

test('the configured capacity is advertised with the owner, and restored when anybody removes it', async t => {
	const {api, start} = await advertiser(t);
	const capacity = start({configured: 3, podUid: 'uid-1'});
	await api.until(() => capacityOf(api) === '3' && ownerOf(api) === 'uid-1');
	t.is(capacity.limit, 3);
	// As a kubelet that restarts, and a daemon of the existing adaptor that stops.
	for (const status of [{capacity: {[extendedResource]: '0'}}, {capacity: {[extendedResource]: null}}]) {
		api.put('nodes', {metadata: {name: node}, status});
		await api.until(() => capacityOf(api) === '3');
	}

	api.put('nodes', {metadata: {name: node, annotations: {[ownerAnnotation]: null}}});
	await api.until(() => ownerOf(api) === 'uid-1');
	api.delete('nodes', node);
	addNode(api);
	await api.until(() => capacityOf(api) === '3');
	t.pass();
});

test('a correct node is not patched', async t => {
	const {api, start} = await advertiser(t);
	api.put('nodes', {metadata: {name: node}, status: {capacity: {[extendedResource]: '2k'}}});
	start({configured: 2000});
	await api.until(() => api.watches >= 1);
	api.put('nodes', {metadata: {name: node, labels: {seen: 'yes'}}});
	api.put('nodes', {metadata: {name: node}, status: {capacity: {[extendedResource]: '7'}}});
	await api.until(() => capacityOf(api) === '2000');
	t.is(api.calls.filter(({verb}) => verb === 'patch').length, 1);
});

test('the limit of PeerPodConfig is followed while it changes, comes and goes', async t => {
	const {api, start} = await advertiser(t);
	const capacity = start({configured: 3});
	await api.until(() => capacityOf(api) === '3');
	api.define(peerPodConfigKind);
	setLimit(api, '20');
	await api.until(() => capacityOf(api) === '20');
	t.is(capacity.limit, 20);
	setLimit(api, '0');
	await api.until(() => capacityOf(api) === '0');
	t.is(capacity.limit, 0);
	setLimit(api, null);
	await api.until(() => capacityOf(api) === '3');
	setLimit(api, '21');
	await api.until(() => capacityOf(api) === '21');
	api.undefine(peerPodConfigKind);
	await api.until(() => capacityOf(api) === '3');
	t.is(capacity.limit, 3);
});

test('a new limit does not wait, however lately the node was patched', async t => {
	const {api, start} = await advertiser(t);
	api.define(peerPodConfigKind);
	start({configured: 3, retryMs: [hour, hour], calmMs: hour});
	await api.until(() => capacityOf(api) === '3');
	for (const limit of ['5', '0', '7']) {
		setLimit(api, limit);
		await api.until(() => capacityOf(api) === limit);
	}

	t.pass();
});

test('a limit that is not a number counts as not set, and is reported', async t => {
	const {api, start} = await advertiser(t);
	api.define(peerPodConfigKind);
	setLimit(api, 'plenty');
	const log = recordingLog();
	start({configured: 4, log});
	await api.until(
		() => capacityOf(api) === '4' && log.lines.some(({message}) => message === 'invalid limit in PeerPodConfig'),
	);
	t.pass();
});

test('a limit that is not a number keeps the last good one, and is reported', async t => {
	const {api, start} = await advertiser(t);
	api.define(peerPodConfigKind);
	setLimit(api, '20');
	const log = recordingLog();
	const capacity = start({configured: 4, log});
	await api.until(() => capacityOf(api) === '20');
	setLimit(api, 'plenty');
	await api.until(() => log.lines.some(({message}) => message === 'invalid limit in PeerPodConfig'));
	t.is(capacity.limit, 20);
	setLimit(api, '6');
	await api.until(() => capacityOf(api) === '6');
	t.deepEqual(patchedLimits(api), ['20', '6']);
});

test('nothing is advertised before PeerPodConfig has answered', async t => {
	const {api, start} = await advertiser(t);
	api.define(peerPodConfigKind);
	setLimit(api, '20');
	let dropped = 0;
	using _ = api.fault(({plural}) => (plural === 'peerpodconfigs' && dropped++ < 20 ? 'drop' : undefined));
	start({configured: 4, client: clientOf(api, {watchRetryMs: [1, 5]})});
	await api.until(() => capacityOf(api) === '20');
	t.true(dropped > 20);
	t.deepEqual(patchedLimits(api), ['20']);
});

test('without permission to read PeerPodConfig, the configured limit is advertised', async t => {
	const {api, start} = await advertiser(t);
	api.define(peerPodConfigKind);
	setLimit(api, '20');
	using _ = api.fault(({plural}) => (plural === 'peerpodconfigs' ? 'forbidden' : undefined));
	start({configured: 4});
	await api.until(() => capacityOf(api) === '4');
	t.pass();
});

test('a daemon with permission to patch but not to read still advertises, and logs this once', async t => {
	const {api, start} = await advertiser(t);
	const log = recordingLog();
	using _ = api.fault(({verb, plural}) => (plural === 'nodes' && verb !== 'patch' ? 'forbidden' : undefined));
	start({configured: 5, log});
	await api.until(() => capacityOf(api) === '5');
	api.put('nodes', {metadata: {name: node}, status: {capacity: {[extendedResource]: '0'}}});
	await api.until(() => capacityOf(api) === '5');
	t.is(log.lines.filter(({level, fields}) => level === 'warn' && fields.node === node).length, 1);
});

test('permission to list but not to watch is logged once, and again after the watch was allowed', async t => {
	const {api, start} = await advertiser(t);
	const log = recordingLog();
	const told = (): number =>
		log.lines.filter(({message}) => message.startsWith('no permission to watch the node')).length;
	const watches = (): number => api.calls.filter(({plural, verb}) => plural === 'nodes' && verb === 'watch').length;
	const forbid = (): Disposable =>
		api.fault(({verb, plural}) => (plural === 'nodes' && verb === 'watch' ? 'forbidden' : undefined));
	const forbidden = forbid();
	start({configured: 5, log});
	await api.until(() => watches() >= 5);
	t.is(told(), 1);
	forbidden[Symbol.dispose]();
	const refused = watches();
	await api.until(() => watches() > refused);
	// A change that the watch tells of.
	api.put('nodes', {metadata: {name: node}, status: {capacity: {cpu: '8'}}});
	await api.until(() => api.watches > 0);
	using _ = forbid();
	api.endWatches('end');
	await api.until(() => told() === 2);
	t.pass();
});

test('an API server that fails for a while is tried until it takes the patch', async t => {
	const {api, start} = await advertiser(t);
	let left = 20;
	using _ = api.fault(({verb}) => (verb === 'patch' && left-- > 0 ? 'error' : undefined));
	const log = recordingLog();
	start({configured: 5, log});
	await api.until(() => capacityOf(api) === '5');
	t.is(log.lines.filter(({level, message}) => level === 'warn' && message.includes('could not advertise')).length, 1);
});

test('a daemon that may not patch tries ever more slowly, whatever happens to the node, until it may', async t => {
	const {api, start} = await advertiser(t);
	const patches = (): number => api.calls.filter(({verb}) => verb === 'patch').length;
	const forbidden = api.fault(({verb}) => {
		if (verb !== 'patch') {
			return undefined;
		}

		// As the kubelet, which writes to its node all the time.
		queueMicrotask(() => api.put('nodes', {metadata: {name: node, labels: {heartbeat: String(patches())}}}));
		return 'forbidden';
	});
	const log = recordingLog();
	start({configured: 5, retryMs: [1, 256], log});
	await api.until(() => patches() >= 1);
	const startedAt = performance.now();
	await api.until(() => patches() >= 10);
	// Pauses of 2, 4, ... 256 ms at least, each shortened by a fifth at most.
	t.true(performance.now() - startedAt >= 0.8 * 510 - 10);
	forbidden[Symbol.dispose]();
	await api.until(() => capacityOf(api) === '5');
	await api.until(() => log.lines.some(({message}) => message === 'capacity of the node advertised'));
	t.is(log.lines.filter(({level, message}) => level === 'warn' && message.includes('could not advertise')).length, 1);
});

test('Retry-After of a refused patch is observed', async t => {
	const {api, start} = await advertiser(t);
	const patchedAt: number[] = [];
	using _ = api.fault(({verb}) => {
		if (verb !== 'patch') {
			return undefined;
		}

		patchedAt.push(performance.now());
		return patchedAt.length === 1 ? {retryAfterSeconds: 1} : undefined;
	});
	start({configured: 5});
	await api.until(() => capacityOf(api) === '5');
	const [first = 0, second = 0] = patchedAt;
	t.is(patchedAt.length, 2);
	t.true(second - first >= 990);
});

test('after a restart of the API server the limit is followed at once: 403, 429 and 410 cost no long pause', async t => {
	const {api, start} = await advertiser(t);
	api.define(peerPodConfigKind);
	start({configured: 3, lookAgainMs: hour, client: clientOf(api, {refusedRetryMs: [1, hour], watchRetryMs: [1, 5]})});
	await api.until(() => capacityOf(api) === '3' && api.watches === 2);
	{
		using _ = api.fault(() => 'drop');
		api.endWatches('drop');
		const {length} = api.calls;
		await api.until(() => api.calls.length > length + 30);
	}

	setLimit(api, '8');
	api.compact();
	let refusals = 4;
	let busy = 2;
	using _ = api.fault(({verb}) =>
		verb !== 'watch' ? undefined : refusals-- > 0 ? 'forbidden' : busy-- > 0 ? {retryAfterSeconds: 0} : undefined,
	);
	await api.until(() => capacityOf(api) === '8');
	t.pass();
});

/** As many requests as a race of patches would be seen in. */
async function manyRequests(api: TestApiServer): Promise<void> {
	using client = clientOf(api);
	for (let request = 0; request < 40; request++) {
		await client.get(nodes, {name: node}, AbortSignal.timeout(100_000));
	}
}

test('two concurrent daemons do not fight: the capacity of the later one is kept', async t => {
	const {api, start} = await advertiser(t);
	start({configured: 3, podUid: 'uid-1'});
	await api.until(() => ownerOf(api) === 'uid-1');
	start({configured: 3, podUid: 'uid-2'});
	await api.until(() => ownerOf(api) === 'uid-2');
	await manyRequests(api);
	t.is(ownerOf(api), 'uid-2');
	t.is(api.calls.filter(({verb}) => verb === 'patch').length, 2);
});

test('repeated changes by others are corrected with growing pauses', async t => {
	const {api, start} = await advertiser(t);
	t.teardown(
		api.store.onEvent(() => {
			if (capacityOf(api) === '3') {
				queueMicrotask(() =>
					api.put('nodes', {metadata: {name: node}, status: {capacity: {[extendedResource]: '4'}}}),
				);
			}
		}),
	);
	start({configured: 3, lookAgainMs: hour, retryMs: [hour, hour], calmMs: hour});
	await api.until(() => capacityOf(api) === '4');
	await manyRequests(api);
	t.is(api.calls.filter(({verb}) => verb === 'patch').length, 1);
});

test('a daemon that is stopping does not correct changes of others', async t => {
	const {api, start} = await advertiser(t);
	const stopping = new AbortController();
	start({configured: 3, stopping: stopping.signal});
	await api.until(() => capacityOf(api) === '3' && api.watches > 0);
	stopping.abort(new Error('told to stop'));
	await api.until(() => api.watches === 0);
	api.put('nodes', {metadata: {name: node}, status: {capacity: {[extendedResource]: '6'}}});
	start({configured: 6});
	await api.until(() => api.watches > 0);
	t.is(capacityOf(api), '6');
});

test('a daemon that stops leaves the resource to its successor', async t => {
	const {api, start} = await advertiser(t);
	const old = start({configured: 3, podUid: 'uid-1'});
	await api.until(() => capacityOf(api) === '3' && api.calls.some(({plural}) => plural === 'daemonsets'));
	start({configured: 3, podUid: 'uid-2'});
	await api.until(() => ownerOf(api) === 'uid-2');
	await old[Symbol.asyncDispose]();
	t.is(capacityOf(api), '3');
});

test("two daemons of an update with two limits do not fight: the newer one's counts", async t => {
	const {api, start} = await advertiser(t);
	const patches = (): number => api.calls.filter(({verb}) => verb === 'patch').length;
	start({configured: 3, podUid: 'uid-1', lookAgainMs: hour});
	await api.until(() => ownerOf(api) === 'uid-1');
	start({configured: 6, podUid: 'uid-2', lookAgainMs: hour});
	await api.until(() => ownerOf(api) === 'uid-2');
	const before = patches();
	for (const label of ['a', 'b', 'c']) {
		const {watches} = api;
		api.put('nodes', {metadata: {name: node, labels: {label}}});
		api.endWatches('end');
		await api.until(() => api.watches >= watches);
	}

	t.is(patches(), before);
	t.is(capacityOf(api), '6');
});

test('if the successor ends and the resource stays removed, the older daemon restores it', async t => {
	const {api, start} = await advertiser(t);
	start({configured: 3, podUid: 'uid-1'});
	await api.until(() => ownerOf(api) === 'uid-1');
	api.put('nodes', {
		metadata: {name: node, annotations: {[ownerAnnotation]: 'uid-2'}},
		status: {capacity: {[extendedResource]: '0'}},
	});
	await api.until(() => capacityOf(api) === '3');
	t.is(ownerOf(api), 'uid-2');
});

test('two daemons without UIDs overwrite each other with growing pauses', async t => {
	const {api, start} = await advertiser(t);
	const patches = (): number => api.calls.filter(({verb}) => verb === 'patch').length;
	start({configured: 3, retryMs: [5, 60_000]});
	start({configured: 6, retryMs: [5, 60_000]});
	await api.until(() => patches() >= 6);
	const startedAt = performance.now();
	await api.until(() => patches() >= 10);
	t.true(performance.now() - startedAt > 60);
});

test('a daemon that stops because its DaemonSet is deleted removes the resource', async t => {
	const {api, start} = await advertiser(t);
	const capacity = start({configured: 3, podUid: 'uid-1'});
	await api.until(() => capacityOf(api) === '3' && api.calls.some(({plural}) => plural === 'daemonsets'));
	api.delete('daemonsets', daemonSet, api.namespace);
	await capacity[Symbol.asyncDispose]();
	t.is(capacityOf(api), undefined);
	t.is(ownerOf(api), undefined);
});

test('a DaemonSet that never existed, or cannot be read, is no reason to remove the resource', async t => {
	const {api, start} = await advertiser(t);
	const elsewhere = start({configured: 3, daemonSet: 'of-another-name'});
	await api.until(() => capacityOf(api) === '3' && api.calls.some(({plural}) => plural === 'daemonsets'));
	await elsewhere[Symbol.asyncDispose]();
	t.is(capacityOf(api), '3');
	const blind = start({configured: 3});
	await api.until(() => api.calls.some(({name}) => name === daemonSet));
	using _ = api.fault(({plural}) => (plural === 'daemonsets' ? 'forbidden' : undefined));
	await blind[Symbol.asyncDispose]();
	t.is(capacityOf(api), '3');
});

test('any count survives the way in which Kubernetes writes it', t => {
	fc.assert(
		fc.property(fc.nat({max: 100_000}), count => {
			const canonical = count >= 1000 && count % 1000 === 0 ? `${count / 1000}k` : String(count);
			t.is(wholeQuantity(canonical), count);
		}),
	);
	for (const text of ['', '-1', '1.5', '1Ki', '100m']) {
		t.is(wholeQuantity(text), undefined);
	}
});

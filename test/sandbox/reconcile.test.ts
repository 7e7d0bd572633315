/**
 * What the rounds of reconcile.ts make of a node on which the shim, the pod, the host or another daemon does something
 * unexpected.
 */
import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {logged, never, pod, fixture, type Fixture, type FixtureOptions} from './fixture.ts';

const socket = (id: string): string => `/run/pods/${id}/agent.ttrpc`;
const web = {name: 'web', namespace: 'shop'};
const namespace = '/run/netns/a';

async function nothingLeft({left}: Fixture): Promise<void> {
	while ((await left()).length > 0) {
		await turn();
	}
}

/** Resolves when this many rounds have begun and ended. */
async function rounds({podVms}: Fixture, count: number): Promise<void> {
	const list = podVms.list.bind(podVms);
	const done = Promise.withResolvers<undefined>();
	let seen = 0;
	podVms.list = async signal => {
		// The round before this one is over when the next one asks.
		if (++seen > count) {
			done.resolve(undefined);
		}

		return list(signal);
	};
	await done.promise;
	podVms.list = list;
}

async function running(t: ExecutionContext, options: FixtureOptions = {}): Promise<Fixture> {
	const here = fixture(t, options);
	await here.registry.create(pod('a'), never);
	await here.registry.start('a', never);
	return here;
}

for (const state of ['created', 'running', 'failed'] as const) {
	test(`a ${state} sandbox whose namespace is gone is removed; the log says why, and so does an event`, async t => {
		const here = fixture(t, {maxSandboxes: () => 1});
		await here.registry.create(pod('a'), never);
		if (state === 'failed') {
			here.podVms.startError = new AdaptorError({code: 'unavailable', what: 'No'});
			await t.throwsAsync(here.registry.start('a', never));
			here.podVms.startError = undefined;
		} else if (state === 'running') {
			await here.registry.start('a', never);
		}

		here.networks.presences.set(namespace, 'gone');
		await logged(here, 'sandbox removed');
		await nothingLeft(here);
		t.like(
			here.log.lines.find(({message}) => message === 'removing the sandbox'),
			{
				level: 'warn',
				fields: {
					sandboxId: 'a',
					pod: 'shop/web',
					reason: 'its network namespace /run/netns/a no longer exists',
				},
			},
		);
		t.true(
			here.cluster.events.some(
				({reason, message}) => reason === 'PodVMRemoved' && message.includes('no longer exists'),
			),
		);
		await here.registry.create(pod('b', 'db'), never);
	});
}

test('if the pod disappears during a start, the start ends and leaves nothing', async t => {
	const here = fixture(t, {
		async before(call, signal) {
			await (call === 'relays.open' ? abortable(Promise.withResolvers<never>().promise, signal) : undefined);
		},
	});
	await here.registry.create(pod('a'), never);
	const start = t.throwsAsync(here.registry.start('a', never), {
		message: /its network namespace \/run\/netns\/a no longer exists/,
	});
	await here.registry.vmOf(web, true, never);
	here.networks.presences.set(namespace, 'gone');
	await start;
	await nothingLeft(here);
});

test('a sandbox whose pod no longer exists in the cluster is removed, though its namespace is there', async t => {
	const here = await running(t);
	here.cluster.pods.set('podvm-web-a', 'gone');
	await nothingLeft(here);
	t.is(
		here.log.lines.find(({message}) => message === 'removing the sandbox')?.fields.reason,
		'the pod no longer exists in the cluster',
	);
});

test('a pod whose existence is unknown is served: neither a lost mount nor a silent API server ends it', async t => {
	const here = await running(t);
	here.networks.presences.set(namespace, 'unknown');
	await rounds(here, 4);
	t.deepEqual([...here.relays.served.keys()], [socket('a')]);
});

test('if a namespace disappears while no daemon runs, the next daemon removes the sandbox and its VM', async t => {
	const before = await running(t);
	before.kill();
	before.networks.presences.set(namespace, 'gone');
	const after = await before.restart();
	await nothingLeft(after);
	t.pass();
});

test('if the pod of a created sandbox disappears while no daemon runs, its reservation is released', async t => {
	const before = fixture(t);
	await before.registry.create(pod('a'), never);
	before.kill();
	before.networks.presences.set(namespace, 'gone');
	const after = await before.restart({maxSandboxes: () => 1});
	await nothingLeft(after);
	await after.registry.create(pod('b', 'db'), never);
	t.pass();
});

test('a program that lacks a file is no proof that the namespace is gone: the pod keeps its VM', async t => {
	const before = await running(t);
	before.kill();
	let failures = 5;
	const after = await before.restart({
		before(call) {
			if (call === 'networks.attach' && failures-- > 0) {
				throw new AdaptorError({
					code: 'not-found',
					what: 'Could not redirect the pod\'s traffic: it does not exist ("tc: No such file or directory")',
				});
			}
		},
	});
	await logged(after, 'sandbox resumed');
	t.is((await after.podVms.list(never)).length, 1);
});

test('the second successor does not touch a start in progress in a daemon that lost its socket', async t => {
	const go = Promise.withResolvers<undefined>();
	const reached = Promise.withResolvers<undefined>();
	const first = fixture(t, {
		async before(call) {
			if (call === 'networks.attach') {
				reached.resolve(undefined);
				await go.promise;
			}
		},
	});
	await first.registry.create(pod('a'), never);
	const start = first.registry.start('a', never);
	await reached.promise;
	const second = await first.restart();
	second.kill();
	const third = await first.restart();
	await rounds(third, 4);
	t.is((await third.podVms.list(never)).length, 1);
	go.resolve(undefined);
	await start;
	await logged(third, 'sandbox resumed');
	t.deepEqual([...third.relays.served.keys()], [socket('a')]);
});

test('a sandbox that a predecessor creates after the start of this daemon is known here and can be started', async t => {
	const before = fixture(t);
	const after = await before.restart();
	await before.registry.create(pod('a'), never);
	await logged(after, 'sandbox resumed, not started yet');
	await after.registry.start('a', never);
	t.deepEqual([...after.relays.served.keys()], [socket('a')]);
});

test('a daemon leaves sandboxes to its successor, and resumes them when the successor ends', async t => {
	const first = fixture(t);
	const second = await first.restart();
	await second.registry.create(pod('a'), never);
	await second.registry.start('a', never);
	await rounds(first, 3);
	t.deepEqual([...first.relays.served.keys()], []);
	second.kill();
	await logged(first, 'sandbox resumed');
	t.deepEqual([...first.relays.served.keys()], [socket('a')]);
	await first.registry.stop('a', never);
	await nothingLeft(first);
});

test('a sandbox that a successor started is served, not rolled back, when the successor ends', async t => {
	const first = fixture(t);
	await first.registry.create(pod('a'), never);
	const second = await first.restart();
	await second.registry.start('a', never);
	second.kill();
	await logged(first, 'sandbox resumed');
	t.deepEqual([...first.relays.served.keys()], [socket('a')]);
	t.false(first.log.lines.some(({message}) => message === 'sandbox rolled back'));
	await first.registry.stop('a', never);
	await nothingLeft(first);
});

test('if a successor removes a VM, its calls end without a warning or an event', async t => {
	const before = await running(t);
	const after = await before.restart();
	await logged(after, 'sandbox resumed');
	await after.registry.stop('a', never);
	await logged(before, 'sandbox handed over to the newer daemon');
	t.true(before.relays.failures.has(socket('a')));
	t.false(before.log.lines.some(({message}) => message === 'pod VM ended by itself'));
	t.deepEqual(before.cluster.events, []);
});

test('a VM of another PODS_DIR is not changed and logged once; StopVM removes it nevertheless', async t => {
	const here = fixture(t, {orphanGraceMs: 0});
	const spec = {
		sandboxId: 'theirs',
		instanceName: 'podvm-x-theirs',
		pod: {name: 'x', namespace: 'y'},
		vcpus: 1,
		memoryMib: 512,
		vni: 1,
		files: [],
	};
	await here.otherPodsDir().start(spec, never);
	await logged(here, 'not changing a pod VM');
	await rounds(here, 3);
	t.is((await here.podVms.list(never)).length, 1);
	t.is(here.log.lines.filter(({message}) => message === 'not changing a pod VM').length, 1);
	t.like(
		here.log.lines.find(({message}) => message === 'not changing a pod VM'),
		{level: 'warn', fields: {instanceName: 'podvm-x-theirs', path: '/elsewhere/pods'}},
	);
	await here.registry.stop('theirs', never);
	t.is((await here.podVms.list(never)).length, 0);
});

test('the pod of an unreachable host is removed when it is gone, and its VM when the host is back', async t => {
	const here = await running(t, {cleanupTimeoutMs: 20, listTimeoutMs: 5});
	here.podVms.host.isAway = true;
	here.podVms.deleteError = new AdaptorError({code: 'unavailable', what: 'The host is away'});
	here.networks.presences.set(namespace, 'gone');
	await logged(here, 'could not reconcile the sandbox; trying again');
	t.deepEqual([...here.relays.served.keys()], [], 'the socket is gone');
	t.is(here.networks.tunnels.get(555_000), undefined, 'the pod is cut off');
	here.podVms.host.isAway = false;
	here.podVms.deleteError = undefined;
	await nothingLeft(here);
});

test('files that cannot be removed from PODS_DIR do not fail a StopVM, and are removed later', async t => {
	let isReadOnly = false;
	const here = await running(t, {
		before(call) {
			if (isReadOnly && (call === 'records.remove' || call === 'records.write')) {
				throw new AdaptorError({code: 'unavailable', what: 'EROFS'});
			}
		},
	});
	isReadOnly = true;
	await here.registry.stop('a', never);
	t.deepEqual(await here.left(), ['record a']);
	isReadOnly = false;
	await nothingLeft(here);
});

test('registrations that the cluster has lost or refused are repeated in the next round', async t => {
	const here = await running(t);
	here.cluster.claims.clear();
	while (!here.cluster.claims.has('podvm-web-a')) {
		await turn();
	}

	await here.registry.stop('a', never);
	here.cluster.claims.set('podvm-old-0', {sandboxId: '0', instanceName: 'podvm-old-0', pod: web});
	while (here.cluster.claims.size > 0) {
		await turn();
	}

	t.pass();
});

test('a failed sandbox that is not stopped is removed after the grace period', async t => {
	const here = fixture(t, {endedGraceMs: 1});
	here.podVms.startError = new AdaptorError({code: 'unavailable', what: 'No'});
	await here.registry.create(pod('a'), never);
	await t.throwsAsync(here.registry.start('a', never));
	await logged(here, 'removing the sandbox');
	await logged(here, 'sandbox removed');
	await t.throwsAsync(here.registry.start('a', never), {message: /no such sandbox/});
});

test('a trigger, such as a restored connection, starts a round at once, not at the next minute', async t => {
	const here = await running(t, {reconcileIntervalMs: 3_600_000});
	here.networks.presences.set(namespace, 'gone');
	here.registry.reconcileSoon();
	await nothingLeft(here);
	t.pass();
});

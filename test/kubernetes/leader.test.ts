import {once} from 'node:events';
import {setTimeout as delay} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {at, textAt} from '../../src/core/json.ts';
import {whileLeading, type LeaderOptions} from '../../src/kubernetes/leader.ts';
import {silentLogger} from '../../src/core/log.ts';
import type {TestApiServer} from '../support/api-server.ts';
import {clientOf, testCluster} from './cluster.ts';

interface Member {
	/** The signal of the work, once it leads; a new one each time. */
	readonly leads: () => Promise<AbortSignal>;
	readonly stop: () => Promise<void>;
}

function member(
	t: ExecutionContext,
	api: TestApiServer,
	identity: string,
	options: Partial<LeaderOptions> = {},
): Member {
	const client = clientOf(api);
	const ending = new AbortController();
	let leading = Promise.withResolvers<AbortSignal>();
	const done = whileLeading(
		{
			client,
			identity,
			lease: {name: 'leader', namespace: 'default'},
			leaseDurationMs: 1000,
			renewDeadlineMs: 500,
			retryMs: 10,
			log: silentLogger,
			...options,
		},
		async signal => {
			leading.resolve(signal);
			if (!signal.aborted) {
				await once(signal, 'abort');
			}

			leading = Promise.withResolvers();
		},
		ending.signal,
	);
	const stop = async (): Promise<void> => {
		ending.abort();
		await done;
	};
	t.teardown(async () => {
		await stop();
		client[Symbol.dispose]();
	});
	return {leads: async () => leading.promise, stop};
}

function leaseOf(api: TestApiServer): unknown {
	return at(api.find('leases', 'leader', 'default'), 'spec');
}

test('the first candidate becomes the leader, and writes the lease like client-go', async t => {
	const {api} = await testCluster(t);
	await member(t, api, 'one').leads();
	t.like(leaseOf(api), {holderIdentity: 'one', leaseDurationSeconds: 1, leaseTransitions: 0});
	t.regex(textAt(leaseOf(api), 'renewTime') ?? '', /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/v);
});

test('one leads at a time; the next takes over as soon as the lease is given back', async t => {
	const {api} = await testCluster(t);
	const one = member(t, api, 'one', {leaseDurationMs: 60_000, renewDeadlineMs: 50_000});
	const first = await one.leads();
	const two = member(t, api, 'two', {leaseDurationMs: 60_000});
	let isSecond = false;
	const second = two.leads().then(signal => {
		isSecond = true;
		return signal;
	});
	const {length} = api.calls;
	await api.until(() => api.calls.length > length + 20);
	t.false(isSecond);
	await one.stop();
	t.true(first.aborted);
	t.false((await second).aborted);
	t.like(leaseOf(api), {holderIdentity: 'two', leaseTransitions: 1});
});

test('a lease that is not renewed is taken when it has expired on the clock of the candidate', async t => {
	const {api} = await testCluster(t);
	api.put('leases', {
		metadata: {name: 'leader', namespace: 'default'},
		spec: {
			holderIdentity: 'dead',
			leaseDurationSeconds: 1,
			renewTime: '2030-01-01T00:00:00.000000Z',
			leaseTransitions: 4,
		},
	});
	const startedAt = performance.now();
	await member(t, api, 'one').leads();
	t.true(performance.now() - startedAt >= 1000);
	t.like(leaseOf(api), {holderIdentity: 'one', leaseTransitions: 5});
});

test('a leader that cannot renew stops before another one can lead', async t => {
	const {api} = await testCluster(t);
	const signal = await member(t, api, 'one', {leaseDurationMs: 10_000}).leads();
	using _ = api.fault(() => 'silence');
	// Not by the clock: timers end in their order, however slow the machine.
	t.not(await Promise.race([once(signal, 'abort'), delay(10_000, 'too late', {ref: false})]), 'too late');
});

test('a leader that sees another holder of the lease stops at once', async t => {
	const {api} = await testCluster(t);
	const signal = await member(t, api, 'one', {renewDeadlineMs: 60_000, leaseDurationMs: 60_000}).leads();
	api.put('leases', {metadata: {name: 'leader', namespace: 'default'}, spec: {holderIdentity: 'usurper'}});
	await once(signal, 'abort');
	t.is(textAt(leaseOf(api), 'holderIdentity'), 'usurper');
});

import test from 'ava';
import {Turns} from '../../src/podvm/turns.ts';

const never = new AbortController().signal;

test('the same key waits for its turn, another does not', async t => {
	const turns = new Turns();
	const order: string[] = [];
	const first = Promise.withResolvers<undefined>();
	const a1 = turns.take('a', async () => {
		await first.promise;
		order.push('a1');
	}, never);
	const a2 = turns.take('a', async () => order.push('a2'), never);
	await turns.take('b', async () => order.push('b'), never);
	t.deepEqual(order, ['b']);
	first.resolve(undefined);
	await Promise.all([a1, a2]);
	t.deepEqual(order, ['b', 'a1', 'a2']);
});

test('one that gives up waiting lets nobody in too early', async t => {
	const turns = new Turns();
	const first = Promise.withResolvers<undefined>();
	const order: string[] = [];
	const running = turns.take('a', async () => {
		await first.promise;
		order.push('first');
	}, never);
	await t.throwsAsync(turns.take('a', async () => order.push('given up'), AbortSignal.abort(new Error('no patience'))), {message: 'no patience'});
	const third = turns.take('a', async () => order.push('third'), never);
	first.resolve(undefined);
	await Promise.all([running, third]);
	t.deepEqual(order, ['first', 'third']);
});

test('a failure is its own and passes the turn on', async t => {
	const turns = new Turns();
	await t.throwsAsync(turns.take('a', async () => Promise.reject(new Error('mine')), never), {message: 'mine'});
	t.is(await turns.take('a', async () => 'next', never), 'next');
});

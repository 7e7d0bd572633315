import {getEventListeners} from 'node:events';
import {setImmediate as turn} from 'node:timers/promises';
import test from 'ava';
import {KeyedMutex} from '../../../src/core/concurrency/keyed-mutex.ts';

const never = new AbortController().signal;

test('tasks of a key run one at a time, in order, also after one that failed', async t => {
	const mutex = new KeyedMutex();
	const seen: string[] = [];
	const task =
		(name: string, fails = false) =>
		async (): Promise<string> => {
			seen.push(`${name} begins`);
			await turn();
			seen.push(`${name} ends`);
			if (fails) {
				throw new Error(name);
			}

			return name;
		};

	const results = await Promise.allSettled([
		mutex.run('k', task('a'), never),
		mutex.run('k', task('b', true), never),
		mutex.run('k', task('c'), never),
	]);
	t.deepEqual(seen, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
	t.deepEqual(
		results.map(({status}) => status),
		['fulfilled', 'rejected', 'fulfilled'],
	);
	await turn();
	t.false(mutex.isBusy('k'));
});

test('the same key waits, another does not', async t => {
	const mutex = new KeyedMutex();
	const order: string[] = [];
	const first = Promise.withResolvers<undefined>();
	const a1 = mutex.run(
		'a',
		async () => {
			await first.promise;
			order.push('a1');
		},
		never,
	);
	const a2 = mutex.run('a', async () => order.push('a2'), never);
	await mutex.run('b', async () => order.push('b'), never);
	t.deepEqual(order, ['b']);
	t.true(mutex.isBusy('a'));
	first.resolve(undefined);
	await Promise.all([a1, a2]);
	t.deepEqual(order, ['b', 'a1', 'a2']);
});

test('a caller that gives up is answered at once, its task never runs, and nobody is let in too early', async t => {
	const mutex = new KeyedMutex();
	const busy = Promise.withResolvers<undefined>();
	const order: string[] = [];
	const first = mutex.run(
		'k',
		async () => {
			await busy.promise;
			order.push('first');
		},
		never,
	);
	const caller = new AbortController();
	const impatient = t.throwsAsync(
		mutex.run('k', async () => order.push('given up'), caller.signal),
		{message: 'enough'},
	);
	const last = mutex.run('k', async () => order.push('last'), never);
	caller.abort(new Error('enough'));
	await impatient;
	busy.resolve(undefined);
	await Promise.all([first, last]);
	t.deepEqual(order, ['first', 'last']);
	t.is(getEventListeners(caller.signal, 'abort').length, 0);
});

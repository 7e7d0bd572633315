import {getEventListeners} from 'node:events';
import test from 'ava';
import fc from 'fast-check';
import {Semaphore} from '../../../src/core/concurrency/semaphore.ts';

const never = new AbortController().signal;

test('no more than the limit run at once, and the others come in their order', async t => {
	const semaphore = new Semaphore(2);
	const seen: number[] = [];
	const turns: Disposable[] = [];
	const all = [0, 1, 2, 3, 4].map(async index => {
		turns.push(await semaphore.acquire(never));
		seen.push(index);
	});
	await Promise.all(all.slice(0, 2));
	t.deepEqual([seen, semaphore.waiting], [[0, 1], 3]);
	turns[1]?.[Symbol.dispose]();
	turns[1]?.[Symbol.dispose]();
	await all[2];
	t.deepEqual([seen, semaphore.waiting], [[0, 1, 2], 2]);
	turns[0]?.[Symbol.dispose]();
	turns[2]?.[Symbol.dispose]();
	await Promise.all(all);
	t.deepEqual(seen, [0, 1, 2, 3, 4]);
	turns[3]?.[Symbol.dispose]();
	turns[4]?.[Symbol.dispose]();
	const [one, other] = await Promise.all([semaphore.acquire(never), semaphore.acquire(never)]);
	t.is(semaphore.waiting, 0);
	one[Symbol.dispose]();
	other[Symbol.dispose]();
});

test('a waiter that gives up leaves the queue without using a permit', async t => {
	const semaphore = new Semaphore(1);
	const first = await semaphore.acquire(never);
	const impatient = new AbortController();
	const given = t.throwsAsync(semaphore.acquire(impatient.signal), {message: 'enough'});
	const patient = semaphore.acquire(never);
	impatient.abort(new Error('enough'));
	await given;
	t.is(semaphore.waiting, 1);
	t.is(getEventListeners(impatient.signal, 'abort').length, 0);
	first[Symbol.dispose]();
	(await patient)[Symbol.dispose]();
	await t.throwsAsync(semaphore.acquire(impatient.signal), {message: 'enough'});
});

test('a permit that is granted to a waiter which aborts at the same moment is not lost', async t => {
	const semaphore = new Semaphore(1);
	const first = await semaphore.acquire(never);
	const abort = new AbortController();
	const waiting = semaphore.acquire(abort.signal);
	abort.abort(new Error('enough'));
	first[Symbol.dispose]();
	await t.throwsAsync(waiting, {message: 'enough'});
	await semaphore.acquire(never);
	t.is(semaphore.waiting, 0);
});

test('whatever is acquired, aborted and released in whatever order, no permit is lost or invented', async t => {
	await fc.assert(
		fc.asyncProperty(
			fc.integer({min: 1, max: 4}),
			fc.array(fc.record({aborts: fc.boolean(), turns: fc.nat(5), group: fc.constantFrom('a', 'b', 'c')}), {
				maxLength: 20,
			}),
			async (count, users) => {
				const semaphore = new Semaphore(count);
				let held = 0;
				await Promise.all(
					users.map(async ({aborts, turns, group}) => {
						const abort = new AbortController();
						const acquired = semaphore.acquire(abort.signal, group).catch(() => undefined);
						for (let turn = 0; turn < turns; turn++) {
							await Promise.resolve();
						}

						if (aborts) {
							abort.abort(new Error('enough'));
						}

						using permit = await acquired;
						if (permit !== undefined) {
							held++;
							t.true(held <= count);
							await Promise.resolve();
							held--;
						}
					}),
				);
				t.is(semaphore.waiting, 0);
				for (let permit = 0; permit < count; permit++) {
					await semaphore.acquire(AbortSignal.timeout(60_000));
				}
			},
		),
	);
	t.pass();
});

test('groups take turns: many waiters of one keep another waiting for one of them only', async t => {
	const semaphore = new Semaphore(1);
	const first = await semaphore.acquire(never, 'greedy');
	const order: string[] = [];
	const waiting = ['greedy 1', 'greedy 2', 'greedy 3', 'modest 1', 'other 1', 'modest 2'].map(async name => {
		using _permit = await semaphore.acquire(never, name.split(' ')[0]);
		order.push(name);
	});
	t.is(semaphore.waiting, 6);
	first[Symbol.dispose]();
	await Promise.all(waiting);
	t.deepEqual(order, ['greedy 1', 'modest 1', 'other 1', 'greedy 2', 'modest 2', 'greedy 3']);
});

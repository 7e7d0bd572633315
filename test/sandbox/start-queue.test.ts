import {getEventListeners} from 'node:events';
import test from 'ava';
import {StartQueue} from '../../src/sandbox/start-queue.ts';

const never = new AbortController().signal;

test('no more than the limit run at once, and the others come in their order', async t => {
	const queue = new StartQueue(2);
	const seen: number[] = [];
	const turns: Disposable[] = [];
	const all = [0, 1, 2, 3, 4].map(async index => {
		turns.push(await queue.turn(never));
		seen.push(index);
	});
	await Promise.all(all.slice(0, 2));
	t.deepEqual([seen, queue.length], [[0, 1], 3]);
	turns[1]?.[Symbol.dispose]();
	turns[1]?.[Symbol.dispose]();
	await all[2];
	t.deepEqual([seen, queue.length], [[0, 1, 2], 2]);
	turns[0]?.[Symbol.dispose]();
	turns[2]?.[Symbol.dispose]();
	await Promise.all(all);
	t.deepEqual(seen, [0, 1, 2, 3, 4]);
	turns[3]?.[Symbol.dispose]();
	turns[4]?.[Symbol.dispose]();
	const [one, other] = await Promise.all([queue.turn(never), queue.turn(never)]);
	t.is(queue.length, 0);
	one[Symbol.dispose]();
	other[Symbol.dispose]();
});

test('who gives up leaves the queue, and does not cost a turn', async t => {
	const queue = new StartQueue(1);
	const first = await queue.turn(never);
	const impatient = new AbortController();
	const given = t.throwsAsync(queue.turn(impatient.signal), {message: 'enough'});
	const patient = queue.turn(never);
	impatient.abort(new Error('enough'));
	await given;
	t.is(queue.length, 1);
	t.is(getEventListeners(impatient.signal, 'abort').length, 0);
	first[Symbol.dispose]();
	(await patient)[Symbol.dispose]();
	await t.throwsAsync(queue.turn(impatient.signal), {message: 'enough'});
});

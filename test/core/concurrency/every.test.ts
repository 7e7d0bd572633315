import {getEventListeners} from 'node:events';
import test from 'ava';
import {every, Trigger} from '../../../src/core/concurrency/every.ts';

test('it yields at once, then at each interval, and ends without an error', async t => {
	const ending = new AbortController();
	const at: number[] = [];
	for await (const _ of every(20, ending.signal)) {
		at.push(performance.now());
		if (at.length === 3) {
			ending.abort(new Error('enough'));
		}
	}

	t.is(at.length, 3);
	t.true((at[2] ?? 0) - (at[0] ?? 0) >= 31, 'two intervals, each shortened by a fifth at most');
	t.is(getEventListeners(ending.signal, 'abort').length, 0);
});

test('an abort in the middle of an interval ends it, and nothing is yielded when it came before', async t => {
	const ending = new AbortController();
	let rounds = 0;
	for await (const _ of every(3_600_000, ending.signal)) {
		rounds++;
		setImmediate(() => ending.abort(new Error('enough')));
	}

	t.is(rounds, 1);
	for await (const _ of every(1, ending.signal)) {
		t.fail();
	}
});

test('a trigger yields early; several count as one, and one during the work is not lost', async t => {
	const ending = new AbortController();
	const trigger = new Trigger();
	let rounds = 0;
	for await (const _ of every(3_600_000, ending.signal, trigger)) {
		rounds++;
		if (rounds === 1) {
			trigger.fire();
			trigger.fire();
		} else if (rounds === 2) {
			setImmediate(() => trigger.fire());
		} else {
			ending.abort(new Error('enough'));
		}
	}

	t.is(rounds, 3);
});

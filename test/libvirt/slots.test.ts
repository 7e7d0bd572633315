import test from 'ava';
import fc from 'fast-check';
import {Slots} from '../../src/libvirt/slots.ts';

const patient = new AbortController().signal;

test('places are given out in the order in which they were asked for', async t => {
	const slots = new Slots(1);
	await slots.acquire(patient);
	const order: number[] = [];
	const waiting = [1, 2, 3].map(async number => {
		await slots.acquire(patient);
		order.push(number);
		slots.release();
	});
	slots.release();
	await Promise.all(waiting);
	t.deepEqual(order, [1, 2, 3]);
});

test('a place that is given to somebody who gives up in the same moment is not lost', async t => {
	const slots = new Slots(1);
	await slots.acquire(patient);
	const abort = new AbortController();
	const waiting = slots.acquire(abort.signal);
	abort.abort(new Error('enough'));
	slots.release();
	await t.throwsAsync(waiting, {message: 'enough'});
	await slots.acquire(patient);
	t.is(slots.waiting, 0);
});

test('whatever is acquired, aborted and released in whatever order, no place is lost or invented', async t => {
	await fc.assert(fc.asyncProperty(fc.integer({min: 1, max: 4}), fc.array(fc.record({aborts: fc.boolean(), turns: fc.nat(5)}), {maxLength: 20}), async (count, users) => {
		const slots = new Slots(count);
		let held = 0;
		await Promise.all(users.map(async ({aborts, turns}) => {
			const abort = new AbortController();
			const acquired = slots.acquire(abort.signal).then(() => true, () => false);
			for (let turn = 0; turn < turns; turn++) {
				await Promise.resolve();
			}

			if (aborts) {
				abort.abort(new Error('enough'));
			}

			if (await acquired) {
				held++;
				t.true(held <= count);
				await Promise.resolve();
				held--;
				slots.release();
			}
		}));
		t.is(slots.waiting, 0);
		for (let place = 0; place < count; place++) {
			await slots.acquire(AbortSignal.timeout(60_000));
		}
	}));
	t.pass();
});

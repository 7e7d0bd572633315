import test from 'ava';
import {OngoingTrouble} from '../src/ongoing-trouble.ts';

test('trouble is news once, and again after it was over', t => {
	const trouble = new OngoingTrouble();
	t.false(trouble.ends());
	t.deepEqual([trouble.begins(), trouble.begins(), trouble.begins()], [true, false, false]);
	t.deepEqual([trouble.ends(), trouble.ends()], [true, false]);
	t.true(trouble.begins());
});

test('one trouble does not hide another, and ends alone or with all', t => {
	const trouble = new OngoingTrouble();
	t.deepEqual([trouble.begins('a'), trouble.begins('b'), trouble.begins('a')], [true, true, false]);
	t.deepEqual([trouble.ends('a'), trouble.ends('a'), trouble.begins('b'), trouble.begins('a')], [true, false, false, true]);
	t.true(trouble.ends());
	t.deepEqual([trouble.begins('a'), trouble.begins('b')], [true, true]);
});

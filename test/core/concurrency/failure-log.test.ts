import test from 'ava';
import {FailureLog} from '../../../src/core/concurrency/failure-log.ts';

test('a failure is news once, and again after a success', t => {
	const failures = new FailureLog();
	t.false(failures.recovered());
	t.deepEqual([failures.failed(), failures.failed(), failures.failed()], [true, false, false]);
	t.deepEqual([failures.recovered(), failures.recovered()], [true, false]);
	t.true(failures.failed());
});

test('one failure does not hide another, and recovers alone or with all', t => {
	const failures = new FailureLog();
	t.deepEqual([failures.failed('a'), failures.failed('b'), failures.failed('a')], [true, true, false]);
	t.deepEqual(
		[failures.recovered('a'), failures.recovered('a'), failures.failed('b'), failures.failed('a')],
		[true, false, false, true],
	);
	t.true(failures.recovered());
	t.deepEqual([failures.failed('a'), failures.failed('b')], [true, true]);
});

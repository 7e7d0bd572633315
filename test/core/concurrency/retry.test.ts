import test from 'ava';
import {retry} from '../../../src/core/concurrency/retry.ts';

const never = new AbortController().signal;

test('failing work is retried until it succeeds, and each failure is reported with its number', async t => {
	const failures: Array<[message: string, attempt: number]> = [];
	const result = await retry(
		async attempt => {
			if (attempt < 3) {
				throw new Error(`no ${attempt}`);
			}

			return attempt;
		},
		{backOff: [1, 2], onFailure: (error, {attempt}) => void failures.push([(error as Error).message, attempt])},
		never,
	);
	t.is(result, 3);
	t.deepEqual(failures, [
		['no 1', 1],
		['no 2', 2],
	]);
});

test('what onFailure throws ends the retries', async t => {
	let attempts = 0;
	await t.throwsAsync(
		retry(
			async () => {
				attempts++;
				throw new Error('refused');
			},
			{
				backOff: [1, 1],
				onFailure(error) {
					throw new Error('final', {cause: error});
				},
			},
			never,
		),
		{message: 'final'},
	);
	t.is(attempts, 1);
});

test('an abort ends a pause with its reason, and lets the error of an attempt stand', async t => {
	const during = new AbortController();
	await t.throwsAsync(
		retry(
			async () => Promise.reject(new Error('no')),
			{backOff: [60_000, 60_000], onFailure: () => void setImmediate(() => during.abort(new Error('enough')))},
			during.signal,
		),
		{message: 'enough'},
	);
	const within = new AbortController();
	await t.throwsAsync(
		retry(
			async () => {
				within.abort(new Error('enough'));
				throw new Error('mine');
			},
			{backOff: [1, 1]},
			within.signal,
		),
		{message: 'mine'},
	);
	let attempts = 0;
	await t.throwsAsync(
		retry(async () => attempts++, {backOff: [1, 1]}, AbortSignal.abort(new Error('before'))),
		{message: 'before'},
	);
	t.is(attempts, 0);
});

test('a pause is as long as the error asks, if that is longer', async t => {
	const startedAt = performance.now();
	await retry(
		async attempt => (attempt === 1 ? Promise.reject(new Error('busy')) : undefined),
		{backOff: [1, 1], leastPauseMs: () => 50},
		never,
	);
	t.true(performance.now() - startedAt >= 49);
});

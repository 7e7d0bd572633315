import {once} from 'node:events';
import test from 'ava';
import {hedged} from '../../../src/core/concurrency/hedged.ts';
import {Queue} from '../../libvirt/scripted-daemon.ts';

const patient = new AbortController().signal;

/** Attempts that end when the test says so, or with their signal. */
function staged(): {
	attempts: Queue<{signal: AbortSignal; end: PromiseWithResolvers<string>}>;
	attempt: (signal: AbortSignal) => Promise<string>;
	discarded: Queue<string>;
} {
	const attempts = new Queue<{signal: AbortSignal; end: PromiseWithResolvers<string>}>();
	return {
		attempts,
		discarded: new Queue(),
		attempt: async signal => {
			const end = Promise.withResolvers<string>();
			signal.addEventListener('abort', () => end.reject(signal.reason), {once: true});
			attempts.push({signal, end});
			return end.promise;
		},
	};
}

test('if an attempt hangs, a hedged attempt starts, and the first result is used', async t => {
	const {attempts, attempt, discarded} = staged();
	const result = hedged(attempt, {everyMs: 20, atMost: 2, discard: late => discarded.push(late)}, patient);
	const first = await attempts.next();
	const second = await attempts.next();
	const ended = once(first.signal, 'abort');
	second.end.resolve('second');
	t.is(await result, 'second');
	await ended;
	t.is(attempts.length, 0);
	t.is(discarded.length, 0);
});

test('what a second attempt brings too late is discarded', async t => {
	const {attempts, attempt, discarded} = staged();
	const result = hedged(attempt, {everyMs: 5, atMost: 2, discard: late => discarded.push(late)}, patient);
	const [first, second] = [await attempts.next(), await attempts.next()];
	first.end.resolve('first');
	second.end.resolve('second');
	t.is(await result, 'first');
	t.is(await discarded.next(), 'second');
});

test('a failure is told at once, and the abort with its reason', async t => {
	const {attempts, attempt, discarded} = staged();
	const options = {everyMs: 60_000, atMost: 2, discard: (late: string) => discarded.push(late)};
	const failing = hedged(attempt, options, patient);
	(await attempts.next()).end.reject(new Error('refused'));
	await t.throwsAsync(failing, {message: 'refused'});
	const abort = new AbortController();
	const aborted = hedged(attempt, options, abort.signal);
	await attempts.next();
	abort.abort(new Error('enough'));
	await t.throwsAsync(aborted, {message: 'enough'});
	await t.throwsAsync(hedged(attempt, options, abort.signal), {message: 'enough'});
	t.is(attempts.length, 0);
});

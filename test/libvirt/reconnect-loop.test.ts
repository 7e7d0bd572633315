import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {ReconnectLoop} from '../../src/libvirt/reconnect-loop.ts';
import {Queue} from './scripted-daemon.ts';

interface Failure {
	readonly number: number;
	readonly retryInMs: number;
}

function staged(code: 'unavailable' | 'unauthenticated'): {
	attempts: ReconnectLoop;
	failures: Queue<Failure>;
	life: AbortController;
	made: () => number;
} {
	const [failures, life] = [new Queue<Failure>(), new AbortController()];
	let made = 0;
	const attempts = new ReconnectLoop({
		attempt: async () => {
			made++;
			throw new AdaptorError({code, what: 'no'});
		},
		onFailure: (_reason, number, retryInMs) => failures.push({number, retryInMs}),
		isWaitedFor: () => false,
		pauseMs: {first: 4, longest: 32},
		life: life.signal,
	});
	return {attempts, failures, life, made: () => made};
}

test('pauses grow up to the longest, each shortened by a fifth at most', async t => {
	const {attempts, failures, life} = staged('unavailable');
	attempts.begin();
	const pauses: number[] = [];
	for (let number = 1; number <= 6; number++) {
		const failure = await failures.next();
		t.is(failure.number, number);
		pauses.push(failure.retryInMs);
	}

	for (const [index, nominal] of [4, 8, 16, 32, 32, 32].entries()) {
		t.true((pauses[index] ?? 0) <= nominal && (pauses[index] ?? 0) >= Math.floor(nominal * 0.8), pauses.join(' '));
	}

	life.abort(new Error('over'));
	await attempts.ended;
});

test('pauses are reset after a lasting success, and continue to grow after a short one', async t => {
	for (const [wasStable, nominal] of [
		[true, 4],
		[false, 16],
	] as const) {
		let fails = true;
		const failures = new Queue<number>();
		const life = new AbortController();
		const attempts = new ReconnectLoop({
			attempt: async () =>
				fails ? Promise.reject(new AdaptorError({code: 'unavailable', what: 'no'})) : undefined,
			onFailure: (_reason, _number, retryInMs) => {
				fails = false;
				failures.push(retryInMs);
			},
			isWaitedFor: () => false,
			pauseMs: {first: 4, longest: 32},
			life: life.signal,
		});
		attempts.begin();
		await failures.next();
		await attempts.ended;
		fails = true;
		attempts.beginAgain(wasStable);
		const again = await failures.next();
		t.true(again <= nominal && again >= Math.floor(nominal * 0.8), `${again} ms`);
		await attempts.ended;
	}
});

test('after a refusal, the next attempt is made only when a caller waits', async t => {
	const {attempts, failures, life, made} = staged('unauthenticated');
	attempts.begin();
	t.is((await failures.next()).retryInMs, 30_000);
	// The short pause is over when waking has an effect.
	while (made() === 1) {
		attempts.wake();
		await new Promise(setImmediate);
	}

	t.is((await failures.next()).number, 2);
	life.abort(new Error('over'));
	await attempts.ended;
	t.is(made(), 2);
});

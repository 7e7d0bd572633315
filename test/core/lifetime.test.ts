import {getEventListeners} from 'node:events';
import test from 'ava';
import {abortable, backOff, DeadlineError, durationText, pause, Scope} from '../../src/core/lifetime.ts';

test("a scope ends with any of its parents, and with that one's reason", t => {
	const [one, other] = [new AbortController(), new AbortController()];
	using scope = new Scope(one.signal, other.signal);
	const reason = new Error('over');
	other.abort(reason);
	t.is(scope.signal.reason, reason);
	t.is(getEventListeners(one.signal, 'abort').length, 0);
});

test('a scope of an aborted parent is born aborted', t => {
	using scope = new Scope(AbortSignal.abort('why'));
	t.is(scope.signal.reason, 'why');
});

test('a disposed scope unlinks from its parents and does not abort', t => {
	const parent = new AbortController();
	const scope = new Scope(parent.signal).deadline(1, 'nothing');
	t.is(getEventListeners(parent.signal, 'abort').length, 1);
	scope[Symbol.dispose]();
	t.is(getEventListeners(parent.signal, 'abort').length, 0);
	parent.abort();
	t.false(scope.signal.aborted);
});

test('a deadline names what was awaited', async t => {
	using scope = new Scope().deadline(1, 'the moon');
	const error = await t.throwsAsync(pause(60_000, scope.signal), {instanceOf: DeadlineError});
	t.is(error.message, 'Timed out after 1 ms waiting for the moon');
	t.is(error.code, 'deadline-exceeded');
});

test('a deadline that is a setting names it', async t => {
	using scope = new Scope().deadline(1, 'the moon', 'MOON_TIMEOUT');
	const error = await t.throwsAsync(pause(60_000, scope.signal), {instanceOf: DeadlineError});
	t.is(error.message, 'Timed out after 1 ms (MOON_TIMEOUT) waiting for the moon');
	t.is(error.limit, '1 ms (MOON_TIMEOUT)');
	t.deepEqual([300_000, 210_000, 1500].map(durationText), ['5m', '210 s', '1500 ms']);
});

test('an abortable wait settles with the promise, or rejects with the reason, and leaves no listener', async t => {
	const controller = new AbortController();
	t.is(await abortable(Promise.resolve(1), controller.signal), 1);
	const {promise, reject} = Promise.withResolvers<never>();
	const waiting = abortable(promise, controller.signal);
	controller.abort(new Error('enough'));
	await t.throwsAsync(waiting, {message: 'enough'});
	await t.throwsAsync(abortable(promise, controller.signal), {message: 'enough'});
	t.is(getEventListeners(controller.signal, 'abort').length, 0);
	// Late rejections of what nobody waits for any more must not end the process.
	reject(new Error('late'));
});

test('back-off doubles up to its maximum', t => {
	const delays = backOff(100, 1000).take(6).toArray();
	for (const [index, most] of [100, 200, 400, 800, 1000, 1000].entries()) {
		const delay = delays[index] ?? 0;
		t.true(delay <= most && delay >= most * 0.8, `${delay} for ${most}`);
	}
});

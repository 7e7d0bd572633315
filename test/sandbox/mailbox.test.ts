import {getEventListeners} from 'node:events';
import {setImmediate as turn} from 'node:timers/promises';
import test from 'ava';
import {Mailbox} from '../../src/sandbox/mailbox.ts';
import {never} from './world.ts';

test('tasks run one at a time, in order, also after one that failed', async t => {
	const mailbox = new Mailbox();
	const seen: string[] = [];
	const task = (name: string, fails = false) => async (): Promise<string> => {
		seen.push(`${name} begins`);
		await turn();
		seen.push(`${name} ends`);
		if (fails) {
			throw new Error(name);
		}

		return name;
	};

	const results = await Promise.allSettled([mailbox.post(task('a'), never), mailbox.post(task('b', true), never), mailbox.post(task('c'), never)]);
	t.deepEqual(seen, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
	t.deepEqual(results.map(({status}) => status), ['fulfilled', 'rejected', 'fulfilled']);
});

test('who gives up while waiting for its turn is answered at once, and its task is never run', async t => {
	const mailbox = new Mailbox();
	const busy = Promise.withResolvers<undefined>();
	const first = mailbox.post(async () => busy.promise, never);
	const caller = new AbortController();
	let ran = false;
	const impatient = t.throwsAsync(mailbox.post(async () => {
		ran = true;
	}, caller.signal), {message: 'enough'});
	const last = mailbox.post(async () => 'last', never);
	caller.abort(new Error('enough'));
	await impatient;
	busy.resolve(undefined);
	await first;
	t.is(await last, 'last');
	t.false(ran);
	t.is(getEventListeners(caller.signal, 'abort').length, 0);
});

import {setImmediate as turn} from 'node:timers/promises';
import test from 'ava';
import {Mailbox} from '../../src/sandbox/mailbox.ts';

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

	const results = await Promise.allSettled([mailbox.post(task('a')), mailbox.post(task('b', true)), mailbox.post(task('c'))]);
	t.deepEqual(seen, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends']);
	t.deepEqual(results.map(({status}) => status), ['fulfilled', 'rejected', 'fulfilled']);
});

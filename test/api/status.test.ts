import {status} from '@grpc/grpc-js';
import test from 'ava';
import {toStatus} from '../../src/api/status.ts';
import {AdaptorError, type ErrorCode} from '../../src/core/errors.ts';
import {DeadlineError} from '../../src/core/lifetime.ts';

/** Every code but OK and those that nobody gives a meaning to: gRPC, "Status codes and their use in gRPC". */
const named = Object.keys(status).filter(
	name => !/^\d+$/.test(name) && !['OK', 'UNKNOWN', 'OUT_OF_RANGE'].includes(name),
);

test("every code becomes the status of its name, with the operator's text", t => {
	for (const name of named) {
		const code = name.toLowerCase().replaceAll('_', '-') as ErrorCode;
		t.deepEqual(toStatus(new AdaptorError({code, what: 'It burns', where: {pool: 'p'}, remedy: 'Run.'})), {
			code: status[name as keyof typeof status],
			message: 'It burns (pool "p"). Run.',
		});
	}
});

test('aborts and timeouts have their own status', t => {
	t.like(toStatus(new DeadlineError('the VM', 5)), {code: status.DEADLINE_EXCEEDED});
	t.like(toStatus(AbortSignal.abort().reason), {code: status.CANCELLED});
});

test("any other thrown value is 'internal', and its text is not sent", t => {
	for (const thrown of [
		new TypeError('hunter2'),
		'hunter2',
		undefined,
		null,
		{message: 'hunter2'},
		new SuppressedError(new Error('hunter2'), new Error('hunter2')),
	]) {
		const {code, message} = toStatus(thrown);
		t.is(code, status.INTERNAL);
		t.notRegex(message, /hunter2/);
	}
});

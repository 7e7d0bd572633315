import {Writable} from 'node:stream';
import {format, inspect} from 'node:util';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {createLogger, Secret, type Logger, type LogLevel} from '../../src/core/log.ts';

async function collecting(level: LogLevel = 'info'): Promise<{log: Logger; lines: () => unknown[]}> {
	const chunks: string[] = [];
	const destination = new Writable({
		write(chunk: Buffer, _encoding, done) {
			chunks.push(chunk.toString());
			done();
		},
	});
	return {
		log: await createLogger({level, format: 'json', destination}),
		lines: () =>
			chunks
				.join('')
				.split('\n')
				.filter(Boolean)
				.map(line => JSON.parse(line) as unknown),
	};
}

test('one event is one JSON line with its fields, level and time', async t => {
	const {log, lines} = await collecting();
	log.child({sandboxId: 'a'}).info({durationMs: 3}, 'pod VM started');
	log.debug({}, 'not seen at this level');
	t.is(lines().length, 1);
	t.like(lines()[0], {level: 'info', sandboxId: 'a', durationMs: 3, msg: 'pod VM started'});
	t.regex((lines()[0] as {time: string}).time, /^\d{4}-\d\d-\d\dT/);
});

test('errors are logged with their causes; ours without a stack', async t => {
	const {log, lines} = await collecting();
	log.error(
		{
			err: new AdaptorError({
				code: 'not-found',
				what: 'No volume',
				where: {pool: 'default', image: 'x'.repeat(1000)},
				remedy: 'Upload it.',
				reason: 'ImageNotFound',
				consoleTail: ['init runs', 'no root'],
				cause: new TypeError('why'),
			}),
		},
		'failed',
	);
	const {cause, ...err} = (lines()[0] as {err: {cause: {type: string; stack?: string}}}).err;
	t.deepEqual(err as unknown, {
		type: 'AdaptorError',
		code: 'not-found',
		what: 'No volume',
		where: {pool: 'default', image: `${'x'.repeat(255)}…`},
		remedy: 'Upload it.',
		reason: 'ImageNotFound',
		console: ['init runs', 'no root'],
	});
	t.like(cause, {type: 'TypeError', message: 'why'});
	t.truthy(cause.stack);
});

test('an error with several causes is logged with all of them', async t => {
	const {log, lines} = await collecting();
	log.warn(
		{err: new SuppressedError(new Error('later'), new AdaptorError({code: 'unavailable', what: 'Earlier'}))},
		'failed',
	);
	log.warn({err: new AggregateError([new Error('one'), 'two'])}, 'failed');
	const messages = (lines() as Array<{err: {errors: Array<{what?: string; message?: string}>}}>).map(({err}) =>
		err.errors.map(({what, message}) => what ?? message),
	);
	t.deepEqual(messages, [
		['Earlier', 'later'],
		['one', 'two'],
	]);
});

test('a secret prints as [redacted] whatever is done with it, and reveals itself only when asked', async t => {
	const secret = new Secret('hunter2');
	const {log, lines} = await collecting();
	log.info({reason: String(secret), path: secret as unknown as string}, 'said');
	const printed = [
		String(secret),
		String([secret]),
		JSON.stringify({secret}),
		inspect(secret),
		inspect({secret}, {depth: 9, showHidden: true}),
		format('%s %o %j', secret, secret, secret),
		JSON.stringify(lines()),
	];
	for (const text of printed) {
		t.notRegex(text, /hunter2/);
		t.regex(text, /\[redacted\]/);
	}

	t.is(secret.reveal(), 'hunter2');
});

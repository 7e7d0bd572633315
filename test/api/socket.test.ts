import {once} from 'node:events';
import {chmod, mkdir, stat, writeFile} from 'node:fs/promises';
import {connect, createServer} from 'node:net';
import {dirname, join} from 'node:path';
import test from 'ava';
import {listen} from '../../src/core/server-socket.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';
import {never} from './harness.ts';

test('only the owner may connect: mode 0600 in a directory made 0700', async t => {
	const path = join(await directoryOf(t), 'peerpod', 'h.sock');
	await using _listener = await listen(path, socket => socket.destroy(), recordingLog(), never);
	t.is((await stat(path)).mode & 0o777, 0o600);
	t.is((await stat(dirname(path))).mode & 0o777, 0o700);
});

test('a stale socket is replaced', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	// A server that is killed leaves its file; closing would remove it, so it is only forgotten.
	const dead = createServer().listen(`${path}.dead`);
	await once(dead, 'listening');
	const {link} = await import('node:fs/promises');
	await link(`${path}.dead`, path);
	dead.close();
	const log = recordingLog();
	const accepted = Promise.withResolvers<undefined>();
	await using _listener = await listen(
		path,
		socket => {
			socket.destroy();
			accepted.resolve(undefined);
		},
		log,
		never,
	);
	t.deepEqual(
		log.lines.map(({message}) => message),
		['replacing a stale socket'],
	);
	connect(path).on('error', () => undefined);
	await accepted.promise;
});

test('the socket of a live daemon is taken over with a warning, and survives the end of that daemon', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	const served: string[] = [];
	const old = await listen(
		path,
		socket => {
			served.push('old');
			socket.destroy();
		},
		recordingLog(),
		never,
	);
	const log = recordingLog();
	const accepted = Promise.withResolvers<undefined>();
	await using _successor = await listen(
		path,
		socket => {
			served.push('new');
			socket.destroy();
			accepted.resolve(undefined);
		},
		log,
		never,
	);
	t.deepEqual(
		log.lines.map(({level, message}) => [level, message]),
		[['warn', 'taking over the socket of a daemon that is still running']],
	);
	await old[Symbol.asyncDispose]();
	await old[Symbol.asyncDispose]();
	connect(path).on('error', () => undefined);
	await accepted.promise;
	t.is(served.at(-1), 'new');
});

test('a file that is no socket is left alone', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	await writeFile(path, 'precious');
	await t.throwsAsync(
		listen(path, () => undefined, recordingLog(), never),
		{instanceOf: AdaptorError, message: /not a socket/},
	);
	t.true((await stat(path)).isFile());
});

test('a path that no socket can have is refused with its limit', async t => {
	await t.throwsAsync(
		listen(`/tmp/${'x'.repeat(120)}`, () => undefined, recordingLog(), never),
		{instanceOf: AdaptorError, message: /too long/},
	);
});

test('a directory that others may write to is reported', async t => {
	const directory = join(await directoryOf(t), 'open');
	await mkdir(directory);
	await chmod(directory, 0o777);
	const log = recordingLog();
	await using _listener = await listen(join(directory, 'h.sock'), socket => socket.destroy(), log, never);
	t.regex(log.lines[0]?.message ?? '', /other users can replace/);
});

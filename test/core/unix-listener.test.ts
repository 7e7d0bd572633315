import {execFile, spawn} from 'node:child_process';
import {once} from 'node:events';
import {chmod, readdir, rename, rm, stat, unlink, writeFile} from 'node:fs/promises';
import {connect, type Socket} from 'node:net';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {setImmediate as turn} from 'node:timers/promises';
import {fileURLToPath} from 'node:url';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {answers, listenAt} from '../../src/core/unix-listener.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';

const never = new AbortController().signal;

/** Says its name to whoever connects. */
async function named(
	t: ExecutionContext,
	path: string,
	name: string,
	log = recordingLog(),
	onBoundAgain = (): void => undefined,
): Promise<AsyncDisposable & {readonly log: ReturnType<typeof recordingLog>}> {
	const listener = await listenAt({path, setting: 'SOCKET', log, scanIntervalMs: 5, onBoundAgain}, socket => {
		socket.on('error', () => undefined);
		socket.end(name);
	});
	t.teardown(async () => listener[Symbol.asyncDispose]());
	return {log, [Symbol.asyncDispose]: async () => listener[Symbol.asyncDispose]()};
}

/** Who answers at the path; undefined when nobody does. */
async function whoAnswers(path: string): Promise<string | undefined> {
	const socket: Socket = connect(path);
	const chunks: Buffer[] = [];
	socket.on('data', chunk => chunks.push(chunk));
	try {
		await once(socket, 'close');
	} catch {
		return undefined;
	}

	return chunks.length === 0 ? undefined : Buffer.concat(chunks).toString();
}

async function until(path: string, name: string): Promise<void> {
	while ((await whoAnswers(path)) !== name) {
		// Each look takes a turn of the event loop.
	}
}

async function said(log: ReturnType<typeof recordingLog>, message: string): Promise<void> {
	while (!log.lines.some(line => line.message === message)) {
		await turn();
	}
}

/** A process that listens at the path as a daemon of another version would, until it is killed. */
async function foreigner(t: ExecutionContext, path: string): Promise<{readonly kill: () => Promise<void>}> {
	const program = `require('net').createServer(s => s.on('error', () => undefined).end('foreigner')).listen(${JSON.stringify(`${path}.new`)}, () => { require('fs').renameSync(${JSON.stringify(`${path}.new`)}, ${JSON.stringify(path)}); console.log('ready'); })`;
	const child = spawn(process.execPath, ['-e', program], {stdio: ['ignore', 'pipe', 'inherit']});
	t.teardown(() => child.kill('SIGKILL'));
	await once(createInterface(child.stdout), 'line');
	return {
		async kill() {
			child.kill('SIGKILL');
			await once(child, 'exit');
		},
	};
}

test('a socket whose file is removed is bound again, private as before, and the log says so', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	const {log} = await named(t, path, 'own');
	await unlink(path);
	await until(path, 'own');
	await said(log, 'socket bound again');
	t.is((await stat(path)).mode & 0o777, 0o600);
	t.like(
		log.lines.find(({message}) => message === 'socket bound again'),
		{level: 'warn', fields: {path, reason: 'its file was removed'}},
	);
});

test('a socket whose directory is removed is bound again', async t => {
	const directory = join(await directoryOf(t), 'peerpod');
	const path = join(directory, 'h.sock');
	await named(t, path, 'own');
	await rm(directory, {recursive: true});
	await until(path, 'own');
	t.is((await stat(directory)).mode & 0o777, 0o700);
});

test('a process that took over the path keeps it while it answers; then the path is bound again', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	const boundAgain = Promise.withResolvers<undefined>();
	const {log} = await named(t, path, 'own', recordingLog(), () => boundAgain.resolve(undefined));
	const other = await foreigner(t, path);
	while (!log.lines.some(({message}) => message === 'another process now serves the socket')) {
		t.is(await whoAnswers(path), 'foreigner');
	}

	await other.kill();
	await until(path, 'own');
	await said(log, 'socket bound again');
	await boundAgain.promise;
	t.is(log.lines.filter(({message}) => message === 'another process now serves the socket').length, 1);
	t.true(
		log.lines.some(
			({message, fields}) =>
				message === 'socket bound again' && fields.reason === 'the process that replaced it no longer answers',
		),
	);
});

test('if two listeners have lost the path, one binds it again, and the other does not replace it', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	const [first, second] = [await named(t, path, 'first'), await named(t, path, 'second')];
	for (let round = 0; round < 20; round++) {
		await unlink(path).catch(() => undefined);
		while (!(await answers(path, never))) {
			// Nobody yet.
		}
	}

	const who = await whoAnswers(path);
	await (who === 'first' ? first : second)[Symbol.asyncDispose]();
	await until(path, who === 'first' ? 'second' : 'first');
	t.pass();
});

test('a file that is not a socket is not replaced and logged once; after its removal the path is bound', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	const {log} = await named(t, path, 'own');
	await rename(path, `${path}.moved`);
	await writeFile(path, 'precious');
	while (!log.lines.some(({level}) => level === 'error')) {
		await whoAnswers(path);
	}

	t.is((await stat(path)).isFile(), true);
	await unlink(path);
	await until(path, 'own');
	t.is(log.lines.filter(({level}) => level === 'error').length, 1);
});

test('after disposing nothing is bound again, and nothing is left', async t => {
	const directory = await directoryOf(t);
	const path = join(directory, 'h.sock');
	const own = await named(t, path, 'own');
	await own[Symbol.asyncDispose]();
	await t.throwsAsync(stat(path), {code: 'ENOENT'});
	t.is(await whoAnswers(path), undefined);
});

test('another user can connect to a socket at no time, even with umask 000', async t => {
	const directory = await directoryOf(t);
	await chmod(directory, 0o755);
	const program = fileURLToPath(new URL('../support/umask-listener.ts', import.meta.url));
	const {stdout} = await promisify(execFile)(process.execPath, [program, join(directory, 'h.sock')]);
	t.deepEqual(JSON.parse(stdout), ['EACCES', 'EACCES']);
	t.deepEqual(await readdir(directory), []);
});

test('512 shims that connect at once, while the daemon is busy, are all served', async t => {
	const path = join(await directoryOf(t), 'h.sock');
	await named(t, path, 'own');
	// Nothing is accepted before all have made their connect(2): it happens at the call, and accepting needs the event
	// loop.
	const sockets = Array.from({length: 512}, () => connect(path));
	const outcomes = await Promise.allSettled(sockets.map(async socket => once(socket, 'data')));
	t.deepEqual(
		outcomes.filter(({status}) => status === 'rejected'),
		[],
	);
	for (const socket of sockets) {
		socket.destroy();
	}
});

/**
 * The unix socket: only its owner may connect, a stale file is replaced, a live daemon's socket is taken over in one step and never
 * without a word, and what is removed at the end is only ever our own. Knows nothing of what is spoken on it.
 */
import {chmod, lstat, mkdir, rename, rm, stat} from 'node:fs/promises';
import {connect, createServer, type Server, type Socket} from 'node:net';
import {dirname} from 'node:path';
import {AdaptorError} from '../errors.ts';
import {abortable} from '../lifetime.ts';
import type {Logger} from '../log.ts';

/** `sun_path` holds 108 bytes with its terminating NUL (unix(7)). */
const maxPathBytes = 107;

export interface UnixListener extends AsyncDisposable {
	/** Accepts no further connections and removes the socket, unless another daemon has taken its place. Accepted ones are the caller's. */
	[Symbol.asyncDispose](): Promise<void>;
}

/** @throws AdaptorError when the path is too long, cannot be made, or is something else than a socket */
export async function listen(path: string, onConnection: (socket: Socket) => void, log: Logger, signal: AbortSignal): Promise<UnixListener> {
	// Bound under another name first: when the right name appears, its mode is right and it answers.
	const pendingPath = `${path}.new`;
	if (Buffer.byteLength(pendingPath) > maxPathBytes) {
		throw new AdaptorError({code: 'invalid-argument', what: 'The socket\'s path is too long', where: {path, maxBytes: maxPathBytes - '.new'.length}, remedy: 'Choose a shorter REMOTE_HYPERVISOR_ENDPOINT.'});
	}

	await mkdir(dirname(path), {recursive: true, mode: 0o700});
	await warnIfOthersMayWrite(dirname(path), log);
	await examine(path, log, signal);
	await rm(pendingPath, {force: true});
	const server = createServer(onConnection);
	await listening(server, pendingPath);
	try {
		await chmod(pendingPath, 0o600);
		const {ino} = await lstat(pendingPath);
		await rename(pendingPath, path);
		let closed: Promise<void> | undefined;
		return {
			async [Symbol.asyncDispose]() {
				closed ??= close(server, path, ino);
				await closed;
			},
		};
	} catch (error) {
		server.close();
		throw error;
	}
}

async function listening(server: Server, path: string): Promise<void> {
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen(path, () => resolve(undefined));
	try {
		await promise;
	} catch (error) {
		throw new AdaptorError({code: 'failed-precondition', what: 'Cannot listen on the socket', where: {path}, remedy: 'Check that its directory can be written to.', cause: error});
	} finally {
		server.off('error', reject);
	}
}

async function close(server: Server, path: string, ino: number): Promise<void> {
	// Node waits for accepted connections here; those end by themselves or by whoever took them.
	server.close();
	const found = await lstat(path).catch(() => undefined);
	if (found?.ino === ino) {
		await rm(path, {force: true});
	}
}

/** What is at the path now? Nothing and a stale socket are fine, a live daemon's is reported, anything else is refused. */
async function examine(path: string, log: Logger, signal: AbortSignal): Promise<void> {
	const found = await lstat(path).catch(() => undefined);
	if (found === undefined) {
		return;
	}

	if (!found.isSocket()) {
		throw new AdaptorError({code: 'failed-precondition', what: 'There is something at the socket\'s path that is not a socket', where: {path}, remedy: 'Move it away, or choose another REMOTE_HYPERVISOR_ENDPOINT.'});
	}

	if (await answers(path, signal)) {
		log.warn({path}, 'taking the socket over from a daemon that is still running');
	} else {
		log.info({path}, 'replacing a stale socket');
	}
}

async function answers(path: string, signal: AbortSignal): Promise<boolean> {
	const socket = connect(path);
	const {promise, resolve} = Promise.withResolvers<boolean>();
	socket.once('connect', () => resolve(true));
	socket.once('error', () => resolve(false));
	try {
		return await abortable(promise, signal);
	} finally {
		socket.destroy();
	}
}

async function warnIfOthersMayWrite(directory: string, log: Logger): Promise<void> {
	const {mode} = await stat(directory);
	if ((mode & 0o022) !== 0 && (mode & 0o1000) === 0) {
		log.warn({path: directory}, 'others than the owner may replace the socket: its directory is writable by group or all');
	}
}

/**
 * The unix socket of a server: replaces a stale file, takes over the socket of a live process in one step, and logs
 * both. Does not know the protocol on it.
 */
import {lstat, mkdir, stat} from 'node:fs/promises';
import type {Socket} from 'node:net';
import {dirname} from 'node:path';
import {AdaptorError} from './errors.ts';
import type {Logger} from './log.ts';
import {present} from './present.ts';
import {answers, checkSocketPath, listenAt} from './unix-listener.ts';

const setting = 'REMOTE_HYPERVISOR_ENDPOINT';

/**
 * Creates a missing directory with mode 0700; does not change an existing one.
 * @param onBoundAgain see `listenAt`
 * @returns disposing accepts no further connections and removes the socket, unless a successor has taken its place
 * @throws AdaptorError if the path is too long, cannot be created, or exists and is not a socket
 */
export async function listen(
	path: string,
	onConnection: (socket: Socket) => void,
	log: Logger,
	signal: AbortSignal,
	onBoundAgain?: () => void,
): Promise<AsyncDisposable & {readonly tookOver: boolean}> {
	checkSocketPath({path, setting});
	await mkdir(dirname(path), {recursive: true, mode: 0o700});
	await warnIfOthersMayWrite(dirname(path), log);
	const tookOver = await examine(path, log, signal);
	const listener = await listenAt({path, setting, log, ...present({onBoundAgain})}, onConnection);
	return {tookOver, [Symbol.asyncDispose]: async () => listener[Symbol.asyncDispose]()};
}

/**
 * Inspects what is at the path. Accepts a free path and a stale socket, reports the socket of a live daemon, and
 * refuses anything else.
 */
async function examine(path: string, log: Logger, signal: AbortSignal): Promise<boolean> {
	const found = await lstat(path).catch(() => undefined);
	if (found === undefined) {
		return false;
	}

	if (!found.isSocket()) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'The file at the path of the socket is not a socket',
			where: {path},
			remedy: 'Move it away, or choose another REMOTE_HYPERVISOR_ENDPOINT.',
		});
	}

	if (await answers(path, signal)) {
		log.warn({path}, 'taking over the socket of a daemon that is still running');
		return true;
	}

	log.info({path}, 'replacing a stale socket');
	return false;
}

async function warnIfOthersMayWrite(directory: string, log: Logger): Promise<void> {
	const {mode} = await stat(directory);
	if ((mode & 0o022) !== 0 && (mode & 0o1000) === 0) {
		log.warn(
			{path: directory},
			'other users can replace the socket: its directory is writable by the group or by everyone',
		);
	}
}

/**
 * Creates and removes the agent socket `<pods-dir>/<sandbox id>/agent.ttrpc`. Does not know the protocol on it.
 */
import {chmod, mkdir, rmdir, unlink} from 'node:fs/promises';
import type {Socket} from 'node:net';
import {dirname} from 'node:path';
import type {Logger} from '../core/log.ts';
import {checkSocketPath, discardUnfinished, listenAt} from '../core/unix-listener.ts';

const setting = 'PODS_DIR';

/** @throws 'invalid-argument' */
export function checkAgentSocketPath(path: string): void {
	checkSocketPath({path, setting});
}

/**
 * Creates its directory with mode 0700.
 * @param onConnection takes over the connection: paused, half-open allowed
 * @returns disposing stops listening, and removes the socket, and its directory if it is empty; connections stay open
 */
export async function listenForShims(
	path: string,
	log: Logger,
	onConnection: (shim: Socket) => void,
): Promise<AsyncDisposable> {
	const directory = dirname(path);
	await mkdir(directory, {recursive: true, mode: 0o700});
	await chmod(directory, 0o700);
	await using stack = new AsyncDisposableStack();
	stack.defer(async () => removeUnless(['ENOENT', 'ENOTEMPTY', 'EEXIST'], rmdir(directory)));
	stack.use(await listenAt({path, setting, log, allowHalfOpen: true, pauseOnConnect: true}, onConnection));
	return stack.move();
}

/** Removes the socket of a crashed daemon. */
export async function discardSocket(path: string): Promise<void> {
	await removeUnless(['ENOENT'], unlink(path));
	await discardUnfinished(dirname(path));
	await removeUnless(['ENOENT', 'ENOTEMPTY', 'EEXIST'], rmdir(dirname(path)));
}

async function removeUnless(reasons: readonly string[], removal: Promise<void>): Promise<void> {
	try {
		await removal;
	} catch (error) {
		if (!(error instanceof Error && 'code' in error && reasons.includes(String(error.code)))) {
			throw error;
		}
	}
}

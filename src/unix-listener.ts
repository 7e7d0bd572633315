/**
 * A unix socket that only its owner can connect to: bound under a temporary name, made 0600, and moved into place, so that it is never
 * open to others, never absent while it replaces another, and removed only while it is still ours. Knows nothing of what is said on it.
 */
import {randomBytes} from 'node:crypto';
import {chmod, lstat, readdir, rename, unlink} from 'node:fs/promises';
import {createServer, type Server, type Socket} from 'node:net';
import {dirname, join} from 'node:path';
import {AdaptorError} from './errors.ts';

/** Bytes of a path in `struct sockaddr_un` without its closing NUL (unix(7)). */
const maxPathBytes = 107;

export interface UnixListenerOptions {
	/** Absolute; its directory exists. */
	readonly path: string;
	/** The setting that the path comes from, for the remedy. */
	readonly setting: string;
	/** As of `net.createServer`. */
	readonly allowHalfOpen?: boolean;
	readonly pauseOnConnect?: boolean;
}

/** @throws 'invalid-argument' for a path that no socket can have */
export function checkSocketPath({path, setting}: Pick<UnixListenerOptions, 'path' | 'setting'>): void {
	const length = Math.max(Buffer.byteLength(path), Buffer.byteLength(temporaryPath(path)));
	if (length > maxPathBytes) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `A socket's path is too long: ${length} bytes, the kernel takes ${maxPathBytes}`,
			where: {path},
			remedy: `Choose a shorter ${setting}.`,
		});
	}
}

/**
 * @param onConnection takes the connection over
 * @returns disposing stops listening and removes the socket, unless somebody has put another in its place; connections are not touched
 * @throws 'invalid-argument' for a path that is too long, 'failed-precondition' when it cannot be listened at
 */
export async function listenAt({path, setting, allowHalfOpen = false, pauseOnConnect = false}: UnixListenerOptions, onConnection: (socket: Socket) => void): Promise<AsyncDisposable> {
	checkSocketPath({path, setting});
	const server = createServer({allowHalfOpen, pauseOnConnect}, onConnection);
	const temporary = temporaryPath(path);
	try {
		await bind(server, temporary);
		await chmod(temporary, 0o600);
		const {ino} = await lstat(temporary, {bigint: true});
		await rename(temporary, path);
		let closed: Promise<void> | undefined;
		return {
			async [Symbol.asyncDispose]() {
				// Not awaited: `close` calls back when the last connection is gone, and those are not ours.
				closed ??= (server.close(), removeOwn(path, ino));
				return closed;
			},
		};
	} catch (error) {
		server.close();
		throw new AdaptorError({code: 'failed-precondition', what: 'Could not listen on a unix socket', where: {path}, remedy: `Check its directory, or choose another ${setting}.`, cause: error});
	}
}

async function bind(server: Server, path: string): Promise<void> {
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen({path, backlog: 128}, () => resolve(undefined));
	await promise;
	server.off('error', reject);
	// One connection that could not be accepted is that one's loss; without a listener it would end the process.
	server.on('error', () => undefined);
}

async function removeOwn(path: string, inode: bigint): Promise<void> {
	const found = await lstat(path, {bigint: true}).catch(ignoreMissing);
	if (found?.ino === inode) {
		await unlink(path).catch(ignoreMissing);
	}
}

function ignoreMissing(error: unknown): undefined {
	if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) {
		throw error;
	}

	return undefined;
}

/** In the same directory, and short. */
function temporaryPath(path: string): string {
	return join(dirname(path), `.${randomBytes(4).toString('hex')}`);
}

/** Removes what a process has left in the directory that died before it could move its socket into place. */
export async function discardUnfinished(directory: string): Promise<void> {
	const entries = await readdir(directory, {withFileTypes: true}).catch(ignoreMissing) ?? [];
	for (const entry of entries) {
		if (entry.isSocket() && /^\.[\da-f]{8}$/.test(entry.name)) {
			await unlink(join(directory, entry.name)).catch(ignoreMissing);
		}
	}
}

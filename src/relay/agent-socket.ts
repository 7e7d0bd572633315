/**
 * The unix socket that a shim connects to: bound under a temporary name, made 0600, and moved into place, so that it is never open to
 * others, replaces what a dead process left, and is removed only while it is still ours. Knows nothing of what is said on it.
 */
import {randomBytes} from 'node:crypto';
import {once} from 'node:events';
import {chmod, lstat, mkdir, rename, rmdir, unlink} from 'node:fs/promises';
import {createServer, type Socket} from 'node:net';
import {dirname, join} from 'node:path';
import {AdaptorError} from '../errors.ts';

/** Bytes of a path in `struct sockaddr_un` without its closing NUL (unix(7)). */
const maxPathBytes = 107;

/** @throws 'invalid-argument' */
export function checkSocketPath(path: string): void {
	const length = Math.max(Buffer.byteLength(path), Buffer.byteLength(temporaryPath(path)));
	if (length > maxPathBytes) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `The agent socket's path is too long: ${length} bytes, the kernel takes ${maxPathBytes}`,
			where: {path},
			remedy: 'Choose a shorter PODS_DIR.',
		});
	}
}

/**
 * Listens at `path`; its directory is made 0700.
 * @param onConnection takes over the connection: paused, half-open allowed
 * @returns disposing stops listening and removes the socket, and its directory when that is empty; connections are not touched
 */
export async function listenAt(path: string, onConnection: (shim: Socket) => void): Promise<AsyncDisposable> {
	checkSocketPath(path);
	const directory = dirname(path);
	await mkdir(directory, {recursive: true, mode: 0o700});
	await chmod(directory, 0o700);
	const server = createServer({allowHalfOpen: true, pauseOnConnect: true}, onConnection);
	const temporary = temporaryPath(path);
	server.listen({path: temporary, backlog: 128});
	await once(server, 'listening');
	let inode: bigint;
	try {
		await chmod(temporary, 0o600);
		({ino: inode} = await lstat(temporary, {bigint: true}));
		await rename(temporary, path);
	} catch (error) {
		server.close();
		throw error;
	}

	let closed: Promise<void> | undefined;
	return {
		async [Symbol.asyncDispose]() {
			// Not awaited: `close` calls back when the last connection is gone, and those are not ours.
			closed ??= (server.close(), removeOwn(path, inode));
			return closed;
		},
	};
}

async function removeOwn(path: string, inode: bigint): Promise<void> {
	try {
		if ((await lstat(path, {bigint: true})).ino === inode) {
			await unlink(path);
			await rmdir(dirname(path));
		}
	} catch (error) {
		const code = error instanceof Error && 'code' in error ? error.code : undefined;
		if (code !== 'ENOENT' && code !== 'ENOTEMPTY' && code !== 'EEXIST') {
			throw error;
		}
	}
}

/** In the same directory. */
function temporaryPath(path: string): string {
	return join(dirname(path), `.${randomBytes(4).toString('hex')}`);
}

/**
 * A unix socket that only its owner can connect to. It is bound in a temporary directory with mode 0700, made 0600, and
 * moved into place: so other users can never connect to it, whatever the umask is; the path always has a socket while
 * one replaces another; and it is removed only if the path still leads to it. If the path no longer leads to it and no
 * other process answers there, it is bound again.
 */
import {randomBytes} from 'node:crypto';
import {chmod, link, lstat, mkdir, readdir, rename, rmdir, unlink} from 'node:fs/promises';
import {connect, createServer, type Server, type Socket} from 'node:net';
import {dirname, join} from 'node:path';
import {every} from './concurrency/every.ts';
import {FailureLog} from './concurrency/failure-log.ts';
import {AdaptorError} from './errors.ts';
import {abortable} from './lifetime.ts';
import type {Logger} from './log.ts';

/** Bytes of a path in `struct sockaddr_un` without its closing NUL (unix(7)). */
const maxPathBytes = 107;

/**
 * All shims of a full node may connect at once while the process is busy. The kernel accepts at most
 * net.core.somaxconn; beyond that, connect(2) fails with EAGAIN.
 */
const backlog = 512;

export interface UnixListenerOptions {
	/** Absolute; its directory exists. */
	readonly path: string;
	/** The setting that the path comes from, for the remedy. */
	readonly setting: string;
	/** As in `net.createServer`. */
	readonly allowHalfOpen?: boolean;
	readonly pauseOnConnect?: boolean;
}

/** @throws 'invalid-argument' for a path that is too long for a socket */
export function checkSocketPath({path, setting}: Pick<UnixListenerOptions, 'path' | 'setting'>): void {
	const length = Math.max(Buffer.byteLength(path), Buffer.byteLength(unfinishedIn(temporaryPath(path))));
	if (length > maxPathBytes) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `The path of a socket is too long: ${length} bytes, the limit is ${maxPathBytes}`,
			where: {path},
			remedy: `Choose a shorter ${setting}.`,
		});
	}
}

export interface KeptListenerOptions extends UnixListenerOptions {
	/** Interval of checks that the path still leads to the socket. */
	readonly scanIntervalMs?: number;
	/** Called each time the socket was bound again: another process may have served clients meanwhile. */
	readonly onBoundAgain?: () => void;
	readonly log: Logger;
}

/** The daemon must notice within 5 s that its socket is not reachable at its path. A check costs almost nothing. */
const scanIntervalMs = 4000;

/**
 * Listens, and keeps listening: if the file of the socket is removed, or replaced by a process that no longer answers,
 * it is bound again. While another process answers at the path, for example a newer daemon, nothing is done.
 * @param onConnection takes over the connection
 * @returns disposing stops listening and removes the socket, unless another process has replaced it; connections stay
 * open
 * @throws 'invalid-argument' for a path that is too long, 'failed-precondition' if listening fails
 */
export async function listenAt(
	options: KeptListenerOptions,
	onConnection: (socket: Socket) => void,
): Promise<AsyncDisposable> {
	checkSocketPath(options);
	const listener = new KeptListener(options, onConnection);
	await listener.begin();
	return listener;
}

/** One binding: the server and its file. */
interface Bound {
	readonly server: Server;
	readonly inode: bigint;
}

class KeptListener implements AsyncDisposable {
	readonly #options: KeptListenerOptions;
	readonly #onConnection: (socket: Socket) => void;
	readonly #ending = new AbortController();
	readonly #failures = new FailureLog();
	#bound: Bound | undefined;
	#keeping: Promise<void> | undefined;
	#closed: Promise<void> | undefined;

	constructor(options: KeptListenerOptions, onConnection: (socket: Socket) => void) {
		this.#options = options;
		this.#onConnection = onConnection;
	}

	async begin(): Promise<void> {
		this.#bound = await this.#bind(async (temporary, path) => rename(temporary, path));
		this.#keeping = this.#keep();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		return this.#closed;
	}

	async #close(): Promise<void> {
		this.#ending.abort(new Error('closed'));
		const bound = this.#bound;
		// Not awaited: the callback of `close` waits until the last connection ends, and the connections belong to
		// other owners.
		bound?.server.close();
		await this.#keeping;
		this.#bound?.server.close();
		if (this.#bound !== undefined) {
			await removeOwn(this.#options.path, this.#bound.inode);
		}
	}

	/** Never throws. */
	async #keep(): Promise<void> {
		const {path, log} = this.#options;
		const {signal} = this.#ending;
		let isFirst = true;
		for await (const _ of every(this.#options.scanIntervalMs ?? scanIntervalMs, signal)) {
			if (isFirst) {
				isFirst = false;
				continue;
			}

			try {
				await this.#look(signal);
				this.#failures.recovered('look');
			} catch (error) {
				if (!signal.aborted && this.#failures.failed('look')) {
					log.error(
						{path, err: error},
						'could not bind the socket again, which is not reachable at its path; retrying',
					);
				}
			}
		}
	}

	async #look(signal: AbortSignal): Promise<void> {
		const {path, log} = this.#options;
		const found = await lstat(path, {bigint: true}).catch(ignoreMissing);
		if (this.#bound !== undefined && found?.ino === this.#bound.inode) {
			this.#failures.recovered('other');
			return;
		}

		if (found !== undefined && !found.isSocket()) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'The file at the path of the socket is not a socket',
				where: {path},
				remedy: 'Move the file away.',
			});
		}

		if (found !== undefined && (await answers(path, signal))) {
			if (this.#failures.failed('other')) {
				log.info({path}, 'another process now serves the socket');
			}

			return;
		}

		if (found !== undefined && !(await removeDead(path, found.ino))) {
			// Another process has just bound it: the next check shows whether it answers.
			return;
		}

		const former = this.#bound;
		// Never replaces a socket that another process bound first.
		const bound = await this.#bind(async (temporary, target) => {
			await link(temporary, target);
			await unlink(temporary);
		});
		this.#bound = bound;
		former?.server.close();
		this.#failures.recovered('other');
		if (signal.aborted) {
			return;
		}

		log.warn(
			{
				path,
				reason: found === undefined ? 'its file was removed' : 'the process that replaced it no longer answers',
			},
			'socket bound again',
		);
		this.#options.onBoundAgain?.();
	}

	/** @param place moves the finished socket to its path */
	async #bind(place: (temporary: string, path: string) => Promise<void>): Promise<Bound> {
		const {path, setting, allowHalfOpen = false, pauseOnConnect = false} = this.#options;
		const server = createServer({allowHalfOpen, pauseOnConnect}, this.#onConnection);
		const directory = temporaryPath(path);
		const temporary = unfinishedIn(directory);
		try {
			await mkdir(dirname(path), {recursive: true, mode: 0o700});
			// Between bind(2) and chmod(2), only the umask decides who may connect. The directory keeps others out
			// meanwhile.
			await mkdir(directory, {mode: 0o700});
			await bind(server, temporary);
			await chmod(temporary, 0o600);
			const {ino} = await lstat(temporary, {bigint: true});
			await place(temporary, path);
			await rmdir(directory).catch(() => undefined);
			return {server, inode: ino};
		} catch (error) {
			server.close();
			await unlink(temporary).catch(() => undefined);
			await rmdir(directory).catch(() => undefined);
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'Could not listen on a unix socket',
				where: {path},
				remedy: `Check its directory, or choose another ${setting}.`,
				cause: error,
			});
		}
	}
}

/** Whether a process accepts connections at the path. */
export async function answers(path: string, signal: AbortSignal): Promise<boolean> {
	const socket = connect(path);
	const {promise, resolve, reject} = Promise.withResolvers<boolean>();
	socket.once('connect', () => resolve(true));
	// A full backlog means a busy process.
	socket.once('error', (error: NodeJS.ErrnoException) =>
		error.code === 'EAGAIN'
			? resolve(true)
			: ['ECONNREFUSED', 'ENOENT'].includes(error.code ?? '')
				? resolve(false)
				: reject(error),
	);
	try {
		return await abortable(promise, signal);
	} finally {
		socket.destroy();
	}
}

/**
 * Removes a dead socket file.
 * @returns false if another file has replaced it
 */
async function removeDead(path: string, inode: bigint): Promise<boolean> {
	const aside = temporaryPath(path);
	try {
		await rename(path, aside);
	} catch (error) {
		ignoreMissing(error);
		return true;
	}

	const {ino} = await lstat(aside, {bigint: true});
	if (ino !== inode) {
		await link(aside, path).catch(() => undefined);
	}

	await unlink(aside);
	return ino === inode;
}

async function bind(server: Server, path: string): Promise<void> {
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen({path, backlog}, () => resolve(undefined));
	await promise;
	server.off('error', reject);
	// A connection that cannot be accepted must not end the process, as an error without a listener would.
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

/** In the same directory, with a short name. */
function temporaryPath(path: string): string {
	return join(dirname(path), `.${randomBytes(4).toString('hex')}`);
}

function unfinishedIn(temporaryDirectory: string): string {
	return join(temporaryDirectory, 's');
}

/** Removes the files of a process that ended before it moved its socket into place. */
export async function discardUnfinished(directory: string): Promise<void> {
	const entries = (await readdir(directory, {withFileTypes: true}).catch(ignoreMissing)) ?? [];
	for (const entry of entries.filter(({name}) => /^\.[\da-f]{8}$/.test(name))) {
		const path = join(directory, entry.name);
		if (entry.isSocket()) {
			await unlink(path).catch(ignoreMissing);
		} else if (entry.isDirectory()) {
			await unlink(unfinishedIn(path)).catch(ignoreMissing);
			// Other files in it do not belong to us.
			await rmdir(path).catch(() => undefined);
		}
	}
}

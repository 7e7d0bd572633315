/**
 * Finds the daemons that run on one PODS_DIR. Each daemon has a file `.daemon-<number>` there and holds a lock on it
 * (flock(2)), which the kernel releases when the process ends. A later daemon has a higher number. The lock shows
 * whether a predecessor is alive. A socket does not show this: another daemon may have taken it over and ended.
 *
 * Node.js has no flock. The program `flock` (util-linux) locks the open file that it inherits. The lock belongs to the
 * open file, so it stays after the program has ended.
 */
import {spawn} from 'node:child_process';
import {randomBytes} from 'node:crypto';
import {link, mkdir, open, readdir, stat, unlink, type FileHandle} from 'node:fs/promises';
import {join} from 'node:path';
import {AdaptorError} from '../core/errors.ts';
import {abortable} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import type {OtherDaemons} from '../sandbox/ports.ts';

const lockName = /^\.daemon-([1-9]\d{0,14})$/v;
const draftName = /^\.daemon-new-[\da-f]{8}$/v;
/** A draft file older than this was left by a daemon that died before it got its number. */
const oldDraftMs = 60_000;

export interface DaemonLock extends OtherDaemons, AsyncDisposable {}

/**
 * Takes a number and finds other running daemons. If PODS_DIR is not writable, this daemon runs without a number: it
 * finds its predecessors, but successors do not find it. This is logged.
 * @returns disposing releases the lock; it must be the last step
 * @throws AdaptorError 'failed-precondition' if the program `flock` is missing
 */
export async function lockPodsDir(podsDir: string, log: Logger): Promise<DaemonLock> {
	const own = await takeNumber(podsDir, log);
	const predecessors: Array<Promise<void>> = [];
	const waiting = new AbortController();
	for (const number of await numbersIn(podsDir)) {
		if (number < (own?.number ?? Infinity)) {
			const file = await openIfThere(lockPath(podsDir, number));
			if (file === undefined) {
				continue;
			}

			if (await lock(file, ['--shared', '--nonblock'])) {
				await file.close();
				// The number is not reused while this daemon has a higher one.
				await unlink(lockPath(podsDir, number)).catch(() => undefined);
			} else {
				log.info({count: number}, 'an earlier daemon is still running');
				predecessors.push(released(file, waiting.signal));
			}
		}
	}

	let areAlive = predecessors.length > 0;
	const ended = Promise.all(predecessors).then(() => {
		areAlive = false;
	});
	ended.catch(() => undefined);
	return {
		hasPredecessor: () => areAlive,
		predecessorsEnded: async signal => abortable(ended, signal),
		hasSuccessor: async () => own !== undefined && hasHigher(podsDir, own.number),
		async [Symbol.asyncDispose]() {
			waiting.abort(new AdaptorError({code: 'cancelled', what: 'The daemon is stopping'}));
			await Promise.allSettled(predecessors);
			if (own !== undefined) {
				await unlink(lockPath(podsDir, own.number)).catch(() => undefined);
				await own.file.close();
			}
		},
	};
}

async function takeNumber(
	podsDir: string,
	log: Logger,
): Promise<{readonly number: number; readonly file: FileHandle} | undefined> {
	// Lock the file before it gets its name, so that no daemon finds it without a lock.
	const draft = join(podsDir, `.daemon-new-${randomBytes(4).toString('hex')}`);
	let file: FileHandle | undefined;
	try {
		await mkdir(podsDir, {recursive: true, mode: 0o700});
		await removeOldDrafts(podsDir);
		file = await open(draft, 'wx', 0o600);
		await lock(file, ['--exclusive']);
		for (;;) {
			const number = Math.max(0, ...(await numbersIn(podsDir))) + 1;
			try {
				await link(draft, lockPath(podsDir, number));
				return {number, file};
			} catch (error) {
				if (!isCode(error, 'EEXIST')) {
					throw error;
				}
			}
		}
	} catch (error) {
		await file?.close();
		if (error instanceof AdaptorError) {
			throw error;
		}

		log.error(
			{
				err: error,
				path: podsDir,
				remedy: 'Make PODS_DIR writable, make sure that it has free space, and restart the daemon.',
			},
			'could not create a lock file in PODS_DIR; a successor will not detect this daemon',
		);
		return undefined;
	} finally {
		await unlink(draft).catch(() => undefined);
	}
}

async function removeOldDrafts(podsDir: string): Promise<void> {
	for (const name of (await readdir(podsDir)).filter(each => draftName.test(each))) {
		const path = join(podsDir, name);
		const age = await stat(path).then(
			({mtimeMs}) => Date.now() - mtimeMs,
			() => 0,
		);
		if (age > oldDraftMs) {
			await unlink(path).catch(() => undefined);
		}
	}
}

async function hasHigher(podsDir: string, own: number): Promise<boolean> {
	for (const number of await numbersIn(podsDir).catch(() => [])) {
		if (number > own) {
			const file = await openIfThere(lockPath(podsDir, number));
			try {
				if (file !== undefined && !(await lock(file, ['--shared', '--nonblock']))) {
					return true;
				}
			} finally {
				await file?.close();
			}
		}
	}

	return false;
}

/** Lowest first. */
async function numbersIn(podsDir: string): Promise<number[]> {
	const names = await readdir(podsDir).catch((error: unknown) => {
		if (isCode(error, 'ENOENT')) {
			return [];
		}

		throw error;
	});
	return names
		.map(name => lockName.exec(name)?.[1])
		.filter(digits => digits !== undefined)
		.map(Number)
		.sort((one, other) => one - other);
}

function lockPath(podsDir: string, number: number): string {
	return join(podsDir, `.daemon-${number}`);
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
	try {
		return await open(path, 'r');
	} catch (error) {
		if (isCode(error, 'ENOENT')) {
			return undefined;
		}

		throw error;
	}
}

/** Resolves when the lock is released. Takes ownership of the file. */
async function released(file: FileHandle, signal: AbortSignal): Promise<void> {
	try {
		// Other daemons may wait, too. A shared lock does not block them.
		await lock(file, ['--shared'], signal);
	} finally {
		await file.close();
	}
}

/**
 * Locks the open file.
 * @returns false if another process holds the lock and `options` do not allow waiting
 */
async function lock(file: FileHandle, options: readonly string[], signal?: AbortSignal): Promise<boolean> {
	const {promise, resolve, reject} = Promise.withResolvers<number | null>();
	const child = spawn('flock', [...options, '3'], {
		stdio: ['ignore', 'ignore', 'ignore', file.fd],
		...present({signal}),
	});
	child.once('error', reject);
	child.once('exit', resolve);
	let status;
	try {
		status = await promise;
	} catch (error) {
		signal?.throwIfAborted();
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not run the program flock',
			remedy: 'Install util-linux.',
			cause: error,
		});
	}

	// Status 1: another process holds the lock (flock(1)).
	if (status !== 0 && status !== 1) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `flock ended with status ${String(status)}`,
			remedy: 'Put PODS_DIR on a file system with locks, such as tmpfs.',
		});
	}

	return status === 0;
}

function isCode(error: unknown, code: string): boolean {
	return error instanceof Error && 'code' in error && error.code === code;
}

/** Whether files can be kept in a directory, without keeping any. Judges nothing. */
import {randomBytes} from 'node:crypto';
import {open, rm, stat, statfs} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import type {DirectoryObservation} from '../check/observations.ts';
import {toError} from '../core/errors.ts';

/** Of one that does not exist yet, the nearest above it is tried. */
export async function observeDirectory(path: string): Promise<DirectoryObservation> {
	const nearest = await nearestExisting(path);
	const {bavail, bsize} = await statfs(nearest, {bigint: true});
	const availableBytes = bavail * bsize;
	const probe = join(nearest, `.caa-probe-${randomBytes(4).toString('hex')}`);
	try {
		const file = await open(probe, 'wx', 0o600);
		try {
			// At once, so that a process that is killed leaves nothing.
			await rm(probe);
			// A whole page, for a file system may take an empty file when it is full.
			await file.writeFile(Buffer.alloc(4096));
		} finally {
			await file.close();
		}

		return {path, nearest, availableBytes};
	} catch (error) {
		return {path, nearest, availableBytes, unwritable: toError(error).message.replace(/,.*/v, '')};
	} finally {
		await rm(probe, {force: true}).catch(() => undefined);
	}
}

async function nearestExisting(path: string): Promise<string> {
	try {
		await stat(path);
		return path;
	} catch (error) {
		// The root can be seen, so this ends. What is beneath a file, or beneath what we may not enter, cannot be made,
		// and trying tells why.
		if (error instanceof Error && 'code' in error && ['ENOENT', 'ENOTDIR', 'EACCES'].includes(String(error.code))) {
			return nearestExisting(dirname(path));
		}

		throw error;
	}
}

/** Observes whether files can be written to a directory. Leaves no file and judges nothing. */
import {randomBytes} from 'node:crypto';
import {open, rm, stat, statfs} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import type {DirectoryObservation} from '../check/observations.ts';
import {fileProblem} from '../core/file-error.ts';

/** If the directory does not exist, tests its nearest existing ancestor. */
export async function observeDirectory(path: string): Promise<DirectoryObservation> {
	const nearest = await nearestExisting(path);
	const {bavail, bsize} = await statfs(nearest, {bigint: true});
	const availableBytes = bavail * bsize;
	const probe = join(nearest, `.caa-probe-${randomBytes(4).toString('hex')}`);
	try {
		const file = await open(probe, 'wx', 0o600);
		try {
			// Remove the open file at once, so that a killed process leaves nothing.
			await rm(probe);
			// Write a whole page, because a full file system may still accept an empty file.
			await file.writeFile(Buffer.alloc(4096));
		} finally {
			await file.close();
		}

		return {path, nearest, availableBytes};
	} catch (error) {
		return {path, nearest, availableBytes, unwritable: await fileProblem(error, nearest)};
	} finally {
		await rm(probe, {force: true}).catch(() => undefined);
	}
}

async function nearestExisting(path: string): Promise<string> {
	try {
		await stat(path);
		return path;
	} catch (error) {
		// The root is always visible, so this recursion ends. A path below a file, or below a directory without access,
		// cannot be created; the attempt returns the reason.
		if (error instanceof Error && 'code' in error && ['ENOENT', 'ENOTDIR', 'EACCES'].includes(String(error.code))) {
			return nearestExisting(dirname(path));
		}

		throw error;
	}
}

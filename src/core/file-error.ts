/** Why an operation on a file failed, with what an operator must know to mend it. */
import {stat} from 'node:fs/promises';
import {dirname} from 'node:path';
import {toError, type ErrorWhere} from './errors.ts';

export interface FileProblem {
	/** Continues "Could not read the key: ". */
	readonly reason: string;
	readonly where: ErrorWhere;
	/** Full sentences; absent if the reason suggests none. */
	readonly remedy?: string;
}

/** Never throws. @param path of the operation, or a directory above */
export async function fileProblem(error: unknown, path: string): Promise<FileProblem> {
	const {message} = toError(error);
	const code = error instanceof Error && 'code' in error ? String(error.code) : '';
	switch (code) {
		case 'ENOSPC':
		case 'EDQUOT': {
			return {
				reason: code === 'ENOSPC' ? 'no space left on device' : 'disk quota exceeded',
				where: {path},
				remedy: `Free space on the file system of ${path}.`,
			};
		}

		case 'EACCES':
		case 'EPERM': {
			const where = await accessOf(path);
			const [uid = ''] = where.user.split(':');
			return {
				reason: code === 'EACCES' ? 'permission denied' : 'operation not permitted',
				where,
				remedy: `Give user ${uid} access to it, for example with chown or chmod. If mode and owner already allow it, look for denials of SELinux or AppArmor.`,
			};
		}

		default: {
			// Node writes `CODE: text, syscall 'path'`.
			return {
				reason:
					code !== '' && message.startsWith(`${code}: `) ? (/: ([^,]*)/v.exec(message)?.[1] ?? '') : message,
				where: {path},
			};
		}
	}
}

/** Mode and owner of the file, or of the nearest directory above that this process can see; and this process's user. */
async function accessOf(path: string): Promise<{path: string; mode: string; owner: string; user: string}> {
	const [found, self] = await Promise.all([
		stat(path).catch(() => undefined),
		stat('/proc/self').catch(() => undefined),
	]);
	if (found === undefined && dirname(path) !== path) {
		return accessOf(dirname(path));
	}

	const owner = (stats: typeof found): string => (stats === undefined ? 'unknown' : `${stats.uid}:${stats.gid}`);
	const mode = found === undefined ? 'unknown' : (found.mode & 0o7777).toString(8).padStart(4, '0');
	return {path, mode, owner: owner(found), user: owner(self)};
}

/**
 * Identifies the directory PODS_DIR, so that the metadata of a VM can name its daemon. The identity is the same in the
 * container, on the node and after a reboot: the type of the file system and the path in it, from the mount table. The
 * path alone is not enough: containers may have different directories of the node at the same path.
 * Source: proc_pid_mountinfo(5).
 */
import {createHash} from 'node:crypto';
import {readFile, realpath} from 'node:fs/promises';
import {basename, dirname, join, relative} from 'node:path';
import {AdaptorError} from '../core/errors.ts';

export interface PodsDirIdentity {
	/** 16 hexadecimal digits. */
	readonly fingerprint: string;
	/** The path in the container of this daemon. */
	readonly path: string;
}

interface Mount {
	/** The mounted directory within the file system. */
	readonly root: string;
	readonly mountPoint: string;
	readonly fileSystem: string;
}

/**
 * Changes nothing. If the directory does not exist, uses the place where it will be created.
 * @throws AdaptorError 'failed-precondition' if the mount is unknown
 */
export async function identifyPodsDir(podsDir: string, node: string): Promise<PodsDirIdentity> {
	try {
		const path = await realpathOf(podsDir);
		const place = placeOf(path, await readFile('/proc/self/mountinfo', 'utf8'));
		return {fingerprint: createHash('sha256').update(`${node}\0${place}`).digest('hex').slice(0, 16), path};
	} catch (error) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not find the mount of PODS_DIR',
			where: {path: podsDir},
			remedy: 'It must be a directory on the node, mounted into the container at the same path (a hostPath volume).',
			cause: error,
		});
	}
}

async function realpathOf(path: string): Promise<string> {
	try {
		return await realpath(path);
	} catch (error) {
		if (error instanceof Error && 'code' in error && error.code === 'ENOENT' && dirname(path) !== path) {
			return join(await realpathOf(dirname(path)), basename(path));
		}

		throw error;
	}
}

/** @param mountinfo the text of /proc/self/mountinfo */
export function placeOf(path: string, mountinfo: string): string {
	let nearest: Mount | undefined;
	for (const line of mountinfo.split('\n')) {
		const mount = parseMount(line);
		// The longest mount point wins. If several have the same path, the last one covers the others.
		if (
			mount !== undefined &&
			isWithin(path, mount.mountPoint) &&
			mount.mountPoint.length >= (nearest?.mountPoint.length ?? 0)
		) {
			nearest = mount;
		}
	}

	return nearest === undefined
		? path
		: `${nearest.fileSystem}:${join(nearest.root, relative(nearest.mountPoint, path))}`;
}

/** `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw`: optional fields end with a hyphen. */
function parseMount(line: string): Mount | undefined {
	const fields = line.split(' ');
	const [root, mountPoint] = [fields[3], fields[4]];
	const fileSystem = fields[fields.indexOf('-') + 1];
	return root === undefined || mountPoint === undefined || fileSystem === undefined
		? undefined
		: {root: unescaped(root), mountPoint: unescaped(mountPoint), fileSystem};
}

/** Decodes the octal escapes of blanks, tabs, line feeds and backslashes. */
function unescaped(text: string): string {
	return text.replaceAll(/\\([0-7]{3})/gv, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

function isWithin(path: string, directory: string): boolean {
	return directory === '/' || path === directory || path.startsWith(`${directory}/`);
}

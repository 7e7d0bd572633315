/**
 * Network namespaces as files: identifies the namespace at a path, whether it may be used, and whether it still exists.
 * Starts no process and enters no namespace.
 *
 * A namespace is identified by the device and inode of its file in nsfs, independently of symbolic links, bind mounts
 * and `..`. The kernel reuses an inode when its namespace is gone, so the identity alone proves nothing about an
 * invisible namespace.
 */
import {constants, type BigIntStats} from 'node:fs';
import {lstat, open, stat} from 'node:fs/promises';
import {basename, dirname} from 'node:path';
import {AdaptorError} from '../core/errors.ts';
import type {NetnsIdentity, PodNetwork, Presence} from '../sandbox/ports.ts';

/** Remedy for a namespace of the node that is not visible here. */
export const mountRemedy =
	'If it exists on the node, mount /run/netns into this container with mountPropagation: HostToContainer.';

/**
 * @param ownPath the namespace of the node, which must never be redirected
 * @throws 'not-found' if there is none, 'failed-precondition' if it is not accessible, 'invalid-argument' if it is not
 * a namespace, or is the namespace of the node
 */
export async function checkNetns(path: string, ownPath: string): Promise<NetnsIdentity> {
	const own = await stat(ownPath, {bigint: true});
	let found;
	try {
		found = await stat(path, {bigint: true});
	} catch (error) {
		const isMissing = isCode(error, 'ENOENT');
		throw new AdaptorError({
			code: isMissing ? 'not-found' : 'failed-precondition',
			what: isMissing
				? 'The network namespace of the pod does not exist'
				: 'The network namespace of the pod is not accessible',
			where: {netns: path},
			remedy: mountRemedy,
			cause: error,
		});
	}

	// All namespaces are files of one file system, nsfs. A mount point without its mount is a plain file.
	if (found.dev !== own.dev) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The network namespace of the pod is a plain file',
			where: {netns: path},
			remedy: 'The namespace no longer exists, or its mount is not visible in this container. In the second case, mount /run/netns with mountPropagation: HostToContainer.',
		});
	}

	if (found.ino === own.ino) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The network namespace of the pod is the namespace of the node',
			where: {netns: path},
			remedy: 'Host-network pods cannot run as peer pods; use the default runtime class for them.',
		});
	}

	return {...idOf(found), directory: idOf(await stat(dirname(path), {bigint: true}))};
}

/** The namespace at the path, if it may be used. Never throws. */
export async function podNetnsAt(path: string, ownPath: string): Promise<NetnsIdentity | undefined> {
	return checkNetns(path, ownPath).catch(() => undefined);
}

/** Implements `PodNetworks.presence`. */
export async function presenceOf(
	{netnsPath, netns}: Pick<PodNetwork, 'netnsPath' | 'netns'>,
	ownPath: string,
): Promise<Presence> {
	let found;
	try {
		const own = await stat(ownPath, {bigint: true});
		found = await stat(netnsPath, {bigint: true}).catch(() => undefined);
		if (found !== undefined && found.dev !== own.dev) {
			return 'unknown';
		}
	} catch {
		return 'unknown';
	}

	if (found !== undefined) {
		return netns === undefined || isSame(netns, idOf(found)) ? 'present' : 'gone';
	}

	return netns !== undefined && (await hasLostName(netnsPath, netns.directory).catch(() => false))
		? 'gone'
		: 'unknown';
}

/** Whether both are the same namespace, while it exists. */
export function isSame(one: Id, other: Id): boolean {
	return one.device === other.device && one.inode === other.inode;
}

type Id = Pick<NetnsIdentity, 'device' | 'inode'>;

/**
 * Whether this directory no longer contains the name. Uses its descriptor, so that a later mount is not confused with
 * it. A dangling symbolic link counts as a name: its target may only be invisible.
 */
async function hasLostName(path: string, directory: Id): Promise<boolean> {
	await using opened = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY).catch(() => undefined);
	if (opened === undefined || !isSame(directory, idOf(await opened.stat({bigint: true})))) {
		return false;
	}

	try {
		await lstat(`/proc/self/fd/${opened.fd}/${basename(path)}`);
		return false;
	} catch (error) {
		return isCode(error, 'ENOENT');
	}
}

function idOf({dev, ino}: BigIntStats): Id {
	return {device: String(dev), inode: String(ino)};
}

function isCode(error: unknown, code: string): boolean {
	return error instanceof Error && 'code' in error && error.code === code;
}

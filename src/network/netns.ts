/**
 * Network namespaces as files: which one is at a path, whether it may be touched, and whether it still exists. Starts
 * no process and enters no namespace.
 *
 * A namespace is known by device and inode of its file in nsfs: symbolic links, bind mounts and `..` lead to the same
 * one. The kernel gives an inode to another namespace as soon as the first is gone, so an identity alone proves nothing
 * about a namespace that cannot be seen any more.
 */
import {constants, type BigIntStats} from 'node:fs';
import {lstat, open, stat} from 'node:fs/promises';
import {basename, dirname} from 'node:path';
import {AdaptorError} from '../core/errors.ts';
import type {NetnsIdentity, PodNetwork, Presence} from '../sandbox/ports.ts';

/** What to do when a namespace that exists on the node cannot be seen. */
export const mountRemedy =
	'If it exists on the node, mount /run/netns into this container with mountPropagation: HostToContainer.';

/**
 * @param ownPath the namespace that must not be touched: a pod of the node's own network would have the node's traffic
 * redirected
 * @throws 'not-found' when there is none, 'failed-precondition' when it cannot be looked at, 'invalid-argument' for
 * something else than a
 *   namespace, or the node's own
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
				? "The pod's network namespace does not exist"
				: "The pod's network namespace cannot be looked at",
			where: {netns: path},
			remedy: mountRemedy,
			cause: error,
		});
	}

	// All namespaces are files of one file system, nsfs. A plain file is what a mount point looks like without its
	// mount.
	if (found.dev !== own.dev) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: "The pod's network namespace is a plain file",
			where: {netns: path},
			remedy: 'It is gone, or its mount does not reach this container: mount /run/netns with mountPropagation: HostToContainer.',
		});
	}

	if (found.ino === own.ino) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: "The pod's network namespace is the node's own",
			where: {netns: path},
			remedy: 'Host-network pods cannot run as peer pods; use the default runtime class for them.',
		});
	}

	return {...idOf(found), directory: idOf(await stat(dirname(path), {bigint: true}))};
}

/** The namespace at the path, if there is one that may be touched. Never throws. */
export async function podNetnsAt(path: string, ownPath: string): Promise<NetnsIdentity | undefined> {
	return checkNetns(path, ownPath).catch(() => undefined);
}

/** As `PodNetworks.presence` promises. */
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

/** Whether both are the same namespace, as long as it exists. */
export function isSame(one: Id, other: Id): boolean {
	return one.device === other.device && one.inode === other.inode;
}

type Id = Pick<NetnsIdentity, 'device' | 'inode'>;

/**
 * Whether that very directory has no such name. By its descriptor, so that nothing that is mounted meanwhile can be
 * taken for it. A symbolic link to nothing is a name: what it points to may only be out of sight.
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

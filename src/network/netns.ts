/** Whether a path is a network namespace that may be touched. Looks at files only: no process, no namespace entered. */
import {stat} from 'node:fs/promises';
import {AdaptorError} from '../errors.ts';

/**
 * @param ownPath the namespace that must not be touched: a pod of the node's own network would have the node's traffic redirected
 * @throws 'not-found' when there is none, 'invalid-argument' for something else than a namespace, or the node's own
 */
export async function checkNetns(path: string, ownPath: string): Promise<void> {
	const own = await stat(ownPath);
	let found;
	try {
		found = await stat(path);
	} catch (error) {
		throw new AdaptorError({
			code: 'not-found',
			what: 'The pod\'s network namespace does not exist',
			where: {netns: path},
			remedy: 'If it exists on the node, mount /run/netns into this container with mountPropagation: HostToContainer.',
			cause: error,
		});
	}

	// All namespaces are files of one file system, nsfs. A plain file is what a mount point looks like without its mount.
	if (found.dev !== own.dev) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The pod\'s network namespace is a plain file',
			where: {netns: path},
			remedy: 'It is gone, or its mount does not reach this container: mount /run/netns with mountPropagation: HostToContainer.',
		});
	}

	if (found.ino === own.ino) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The pod\'s network namespace is the node\'s own',
			where: {netns: path},
			remedy: 'Host-network pods cannot run as peer pods; use the default runtime class for them.',
		});
	}
}

/** Whether there is one at the path that may be touched. */
export async function isPodNetns(path: string, ownPath: string): Promise<boolean> {
	try {
		await checkNetns(path, ownPath);
		return true;
	} catch (error) {
		if (error instanceof AdaptorError) {
			return false;
		}

		throw error;
	}
}

/** Validates sandbox ids. The id becomes part of a path and of names at the hypervisor. */
import {AdaptorError, echoed} from '../core/errors.ts';
import type {CreateSandbox, SandboxId} from './ports.ts';

export function isUsableId(id: SandboxId): boolean {
	return /^[A-Za-z\d][\w.-]{0,127}$/.test(id);
}

/** @throws AdaptorError 'invalid-argument' */
export function assertUsable({id, netnsPath}: Pick<CreateSandbox, 'id' | 'netnsPath'>): void {
	if (!isUsableId(id)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The sandbox id is not usable as a file name',
			where: {sandboxId: echoed(id)},
			remedy: 'It must be 1 to 128 letters, digits, ".", "_" or "-", and begin with a letter or digit.',
		});
	}

	if (!netnsPath.startsWith('/') || netnsPath.includes('\0')) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The network namespace is not an absolute path',
			where: {sandboxId: id, netns: echoed(netnsPath)},
			remedy: 'Host-network pods cannot run as peer pods; use the default runtime class for them.',
		});
	}
}

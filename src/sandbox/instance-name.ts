/**
 * Creates and recognises the name of the VM of a sandbox.
 */
import type {SandboxId} from './ports.ts';

/**
 * `podvm-<pod>-<first 8 characters of the id>`. It is a DNS label, because the host name and the TLS certificate of the
 * VM use it.
 */
export function instanceName(podName: string, id: SandboxId): string {
	const suffix = suffixOf(id);
	return `podvm-${label(podName).slice(0, 63 - 'podvm--'.length - suffix.length)}-${suffix}`;
}

/**
 * Whether this can be the VM of the sandbox. It is not unique: ids of other sandboxes may have the same first digits.
 */
export function isInstanceNameOf(name: string, id: SandboxId): boolean {
	return /^podvm-[a-z\d-]{1,57}$/.test(name) && name.endsWith(`-${suffixOf(id)}`);
}

function suffixOf(id: SandboxId): string {
	return label(id.slice(0, 8)).replace(/-$/, '0');
}

function label(text: string): string {
	return text.toLowerCase().replaceAll(/[^a-z\d-]/g, '-');
}

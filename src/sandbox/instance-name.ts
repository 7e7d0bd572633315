/**
 * What the VM of a sandbox is called, and how it is told by its name among others. Whoever makes the names and whoever
 * looks for VMs agree here.
 */
import type {SandboxId} from './ports.ts';

/**
 * `podvm-<pod>-<first 8 of the id>`: a DNS label, for it is also the VM's host name and the name on its TLS
 * certificate.
 */
export function instanceName(podName: string, id: SandboxId): string {
	const suffix = suffixOf(id);
	return `podvm-${label(podName).slice(0, 63 - 'podvm--'.length - suffix.length)}-${suffix}`;
}

/** Whether a VM of the sandbox may be called so. Another sandbox's may as well, if their ids begin alike. */
export function isInstanceNameOf(name: string, id: SandboxId): boolean {
	return /^podvm-[a-z\d-]{1,57}$/.test(name) && name.endsWith(`-${suffixOf(id)}`);
}

function suffixOf(id: SandboxId): string {
	return label(id.slice(0, 8)).replace(/-$/, '0');
}

function label(text: string): string {
	return text.toLowerCase().replaceAll(/[^a-z\d-]/g, '-');
}

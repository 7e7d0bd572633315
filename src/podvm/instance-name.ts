/** What a pod VM's domain is called, as far as libvirt's side depends on it. Who makes the names is the domain's (src/sandbox/names.ts). */
import {AdaptorError} from '../errors.ts';
import type {PodVmSpec, SandboxId} from '../sandbox/ports.ts';

/** The end of the names of a sandbox's VM: how it is found again by its id among many without reading each one's XML. */
export function instanceNameSuffix(sandboxId: SandboxId): string {
	return `-${sandboxId.slice(0, 8).toLowerCase().replaceAll(/[^a-z0-9-]/g, '-')}`;
}

/** @throws AdaptorError 'invalid-argument' */
export function checkInstanceName({sandboxId, instanceName}: Pick<PodVmSpec, 'sandboxId' | 'instanceName'>): void {
	if (!/^podvm-[a-z0-9-]{1,57}$/.test(instanceName) || !instanceName.endsWith(instanceNameSuffix(sandboxId))) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Could not start the pod VM: its name is not podvm-<pod>-<first 8 of the sandbox id>',
			where: {instanceName, sandboxId},
		});
	}
}

/**
 * Deletes the VMs of nodes that no longer exist; the controller decides which. A VM is deleted only if its definition
 * proves that it belongs to this cluster, that node and that pod, has the expected name, and has a UUID that only that
 * node assigns. The name alone proves nothing, because users of the cluster choose it.
 */
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {Logger} from '../core/log.ts';
import type {PodIdentity} from '../sandbox/ports.ts';
import {listDomains, readOwnDomains} from './own-domains.ts';
import {removeVm} from './removal.ts';
import {VmSlots} from './vm-slots.ts';

export interface AbandonedVm {
	readonly instanceName: string;
	/** NODE_NAME of the daemon that started it. */
	readonly node: string;
	readonly pod: Pick<PodIdentity, 'name' | 'namespace'>;
}

export interface AbandonedVmsOptions {
	readonly session: LibvirtCalls;
	/** CLUSTER_ID of the daemons. */
	readonly cluster: string;
	readonly log: Logger;
}

/**
 * Deletes the VM and its disks. Succeeds if it does not exist. Leaves a VM alone that has the name but belongs to
 * another owner.
 * @returns whether the VM existed
 */
export async function deleteAbandonedVm(
	{session, cluster, log}: AbandonedVmsOptions,
	{instanceName, node, pod}: AbandonedVm,
	signal: AbortSignal,
): Promise<boolean> {
	const named = (await listDomains(session, signal)).filter(({name}) => name === instanceName);
	const own = await readOwnDomains(session, new VmSlots(cluster, node), {cluster, node}, named, log, signal);
	const [found] = own.filter(
		({metadata}) => metadata.pod.name === pod.name && metadata.pod.namespace === pod.namespace,
	);
	if (found === undefined) {
		if (named.length > 0) {
			log.warn(
				{instanceName, node, pod: `${pod.namespace}/${pod.name}`},
				'not deleting a domain: it has the expected name, but it is not the VM of this pod, node and cluster',
			);
		}

		return false;
	}

	signal.throwIfAborted();
	await removeVm(session, found, signal);
	return true;
}

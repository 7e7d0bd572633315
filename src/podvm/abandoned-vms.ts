/**
 * Deletes VMs of nodes that are gone, from outside of any node: for whoever knows that nobody else will. What is
 * deleted must be, by its own definition, of this cluster, that node and that pod, under its name, and have a UUID that
 * only that node hands out; a name alone is not enough, since names come from the cluster's users. Knows nothing of how
 * it is decided.
 */
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {Logger} from '../core/log.ts';
import type {PodIdentity} from '../sandbox/ports.ts';
import {listDomains, readOwnDomains} from './own-domains.ts';
import {removeVm} from './removal.ts';
import {VmSlots} from './vm-slots.ts';

export interface AbandonedVm {
	readonly instanceName: string;
	/** NODE_NAME of the daemon that has started it. */
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
 * Deletes the VM and its disks. Succeeds when there is none such: one that has the name and is another's is left alone.
 * @returns whether there was one
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
				'the domain of this name is not the VM of this pod, node and cluster: it is left alone',
			);
		}

		return false;
	}

	signal.throwIfAborted();
	await removeVm(session, found, signal);
	return true;
}

/** `Cluster` without an API server: what it was told is there to be read. */
import {abortable} from '../../src/lifetime.ts';
import type {Secret} from '../../src/log.ts';
import type {ClaimedVm, Cluster, PodEvent, PodIdentity, Presence} from '../../src/sandbox/ports.ts';

export class InMemoryCluster implements Cluster {
	/** By instance name. */
	readonly claims = new Map<string, ClaimedVm>();
	readonly events: Array<PodEvent & {readonly pod: PodIdentity}> = [];
	credentials: Secret<string> | undefined;
	/** By instance name: pods of which the cluster says something; 'unknown' for all others. */
	readonly pods = new Map<string, Presence>();
	/** When set, claims and questions wait for it. */
	gate: Promise<void> = Promise.resolve();

	async pullCredentials(_pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined> {
		await abortable(this.gate, signal);
		return this.credentials;
	}

	async claim(vm: ClaimedVm, signal: AbortSignal): Promise<void> {
		await abortable(this.gate, signal);
		this.claims.set(vm.instanceName, vm);
	}

	disclaim({instanceName}: ClaimedVm): void {
		this.claims.delete(instanceName);
	}

	async podPresence({instanceName}: ClaimedVm, signal: AbortSignal): Promise<Presence> {
		await abortable(this.gate, signal);
		return this.pods.get(instanceName) ?? 'unknown';
	}

	reconcile(vms: readonly ClaimedVm[]): void {
		this.claims.clear();
		for (const vm of vms) {
			this.claims.set(vm.instanceName, vm);
		}
	}

	tell(pod: PodIdentity, event: PodEvent): void {
		this.events.push({...event, pod});
	}
}

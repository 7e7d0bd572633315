/** `Cluster` without an API server: what it was told is there to be read. */
import {abortable} from '../../src/core/lifetime.ts';
import type {Secret} from '../../src/core/log.ts';
import type {RegisteredVm, Cluster, PodEvent, PodIdentity, Presence} from '../../src/sandbox/ports.ts';

export class InMemoryCluster implements Cluster {
	/** By instance name. */
	readonly claims = new Map<string, RegisteredVm>();
	readonly events: Array<PodEvent & {readonly pod: PodIdentity}> = [];
	credentials: Secret<string> | undefined;
	/** By instance name: what the cluster says of its pod, whatever else is known. */
	readonly pods = new Map<string, Presence>();
	/**
	 * By `namespace/name`: the UIDs of all pods that there are. When undefined the cluster does not say: 'unknown' for
	 * all that `pods` does not name.
	 */
	podUids: Map<string, string> | undefined;
	/** By instance name: the UID of the pod when its VM was claimed. */
	readonly #owners = new Map<string, string>();
	/** When set, claims and questions wait for it. */
	gate: Promise<void> = Promise.resolve();

	async pullCredentials(_pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined> {
		await abortable(this.gate, signal);
		return this.credentials;
	}

	async registerVm(vm: RegisteredVm, signal: AbortSignal): Promise<void> {
		await abortable(this.gate, signal);
		this.#claim(vm);
	}

	unregisterVm({instanceName}: RegisteredVm): void {
		this.claims.delete(instanceName);
		this.#owners.delete(instanceName);
	}

	async podPresence({instanceName, pod}: RegisteredVm, signal: AbortSignal): Promise<Presence> {
		await abortable(this.gate, signal);
		const said = this.pods.get(instanceName);
		// The kubelet's UIDs of static pods have no dashes.
		if (said !== undefined || this.podUids === undefined || pod.uid?.includes('-') === false) {
			return said ?? 'unknown';
		}

		const uid = this.podUids.get(nameOf(pod));
		return uid !== undefined && (pod.uid ?? this.#owners.get(instanceName) ?? uid) === uid ? 'present' : 'gone';
	}

	reconcile(vms: readonly RegisteredVm[]): void {
		const wanted = new Set(vms.map(({instanceName}) => instanceName));
		for (const vm of [...this.claims.values()].filter(({instanceName}) => !wanted.has(instanceName))) {
			this.unregisterVm(vm);
		}

		for (const vm of vms) {
			this.#claim(vm);
		}
	}

	recordEvent(pod: PodIdentity, event: PodEvent): void {
		this.events.push({...event, pod});
	}

	#claim(vm: RegisteredVm): void {
		this.claims.set(vm.instanceName, vm);
		const uid = this.podUids?.get(nameOf(vm.pod));
		if (uid !== undefined && !this.#owners.has(vm.instanceName)) {
			this.#owners.set(vm.instanceName, uid);
		}
	}
}

function nameOf({namespace, name}: PodIdentity): string {
	return `${namespace}/${name}`;
}

/** `Cluster` without an API server. Tests can read all that was registered and recorded. */
import {abortable} from '../../src/core/lifetime.ts';
import type {Secret} from '../../src/core/log.ts';
import type {RegisteredVm, Cluster, PodEvent, PodIdentity, Presence} from '../../src/sandbox/ports.ts';

export class InMemoryCluster implements Cluster {
	/** By instance name. */
	readonly claims = new Map<string, RegisteredVm>();
	readonly events: Array<PodEvent & {readonly pod: PodIdentity}> = [];
	credentials: Secret<string> | undefined;
	/** By instance name: the answer of `podPresence`. Overrides `podUids`. */
	readonly pods = new Map<string, Presence>();
	/**
	 * By `namespace/name`: the UIDs of all existing pods. If undefined, the answer is 'unknown' for pods that are not
	 * in `pods`.
	 */
	podUids: Map<string, string> | undefined;
	/** By instance name: the UID of the pod when its VM was registered. */
	readonly #owners = new Map<string, string>();
	/** If set, registrations and queries wait for it. */
	gate: Promise<void> = Promise.resolve();

	async pullCredentials(_pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined> {
		await abortable(this.gate, signal);
		return this.credentials;
	}

	async registerVm(vm: RegisteredVm, signal: AbortSignal): Promise<void> {
		await abortable(this.gate, signal);
		this.#register(vm);
	}

	unregisterVm({instanceName}: RegisteredVm): void {
		this.claims.delete(instanceName);
		this.#owners.delete(instanceName);
	}

	async podPresence({instanceName, pod}: RegisteredVm, signal: AbortSignal): Promise<Presence> {
		await abortable(this.gate, signal);
		const said = this.pods.get(instanceName);
		// UIDs of static pods, which the kubelet creates, have no dashes.
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
			this.#register(vm);
		}
	}

	recordEvent(pod: PodIdentity, event: PodEvent): void {
		this.events.push({...event, pod});
	}

	#register(vm: RegisteredVm): void {
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

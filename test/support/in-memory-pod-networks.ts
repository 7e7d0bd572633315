/** Pod networks without a kernel: VNIs from a counter, what is reserved and attached in a map. Passes the contract suite. */
import {AdaptorError, toError} from '../../src/errors.ts';
import type {PodNetwork, PodNetworks, Presence, SandboxId} from '../../src/sandbox/ports.ts';

export class InMemoryPodNetworks implements PodNetworks {
	/** VNI -> the address that its tunnel points to, or undefined when only reserved. */
	readonly tunnels = new Map<number, string | undefined>();
	/** What the node itself has of a tunnel: VNI -> the VM's address. */
	readonly untracked = new Map<number, string>();
	/** The namespace's path -> who has reserved what in it. */
	readonly #tenancies = new Map<string, {readonly sandboxId: SandboxId; readonly vni: number}>();
	/** Paths of namespaces that are gone, or cannot be seen. */
	readonly presences = new Map<string, Presence>();
	#nextVni = 555_000;

	async reserve(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<PodNetwork> {
		throwIfAborted(signal);
		const vxlanId = this.#nextVni++;
		this.tunnels.set(vxlanId, undefined);
		this.#tenancies.set(netnsPath, {sandboxId, vni: vxlanId});
		return {
			netnsPath, podIp: '10.244.0.5/24', podHwAddr: '0a:58:0a:f4:00:05', interface: 'eth0', workerNodeIp: '192.168.122.10/24', tunnelType: 'vxlan',
			routes: [], neighbors: [], mtu: 1450, index: 0, vxlanPort: 4789, vxlanId, dedicated: false, externalNetViaPodVm: false,
		};
	}

	async abandon(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		const tenancy = this.#tenancies.get(netnsPath);
		if (tenancy?.sandboxId === sandboxId && this.tunnels.get(tenancy.vni) === undefined) {
			this.tunnels.delete(tenancy.vni);
		}
	}

	async presence({netnsPath}: PodNetwork, _signal: AbortSignal): Promise<Presence> {
		return this.presences.get(netnsPath) ?? 'present';
	}

	async identify(network: PodNetwork, signal: AbortSignal): Promise<PodNetwork> {
		throwIfAborted(signal);
		return network;
	}

	async attach({vxlanId}: PodNetwork, vmAddress: string, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		if (!this.tunnels.has(vxlanId)) {
			throw new AdaptorError({code: 'failed-precondition', what: 'The VNI is not reserved', where: {vni: vxlanId}});
		}

		this.tunnels.set(vxlanId, vmAddress);
		this.untracked.set(vxlanId, vmAddress);
	}

	async release({vxlanId}: PodNetwork, _signal: AbortSignal): Promise<void> {
		this.tunnels.delete(vxlanId);
		this.untracked.delete(vxlanId);
	}

	async forget(vni: number, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		this.untracked.delete(vni);
	}
}

function throwIfAborted(signal: AbortSignal): void {
	if (signal.aborted) {
		throw toError(signal.reason);
	}
}

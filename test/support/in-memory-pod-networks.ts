/**
 * `PodNetworks` without a kernel: VNIs come from a counter, reservations and attachments are in a map. Passes
 * test/contract/pod-networks.ts.
 */
import {dirname, normalize} from 'node:path/posix';
import {AdaptorError, toError} from '../../src/core/errors.ts';
import type {NetnsIdentity, PodNetwork, PodNetworks, Presence, SandboxId} from '../../src/sandbox/ports.ts';

interface Tenancy {
	readonly sandboxId: SandboxId;
	readonly vni: number;
	readonly inode: string;
}

export class InMemoryPodNetworks implements PodNetworks {
	/** By VNI: the remote address of its tunnel, or undefined if it is only reserved. */
	readonly tunnels = new Map<number, string | undefined>();
	/** The host-side state of tunnels. By VNI: the address of the VM. */
	readonly untracked = new Map<number, string>();
	readonly #tenancies = new Set<Tenancy>();
	/** By path of a namespace: the answer of `presence`. Overrides the other state. */
	readonly presences = new Map<string, Presence>();
	/** By path: the inode of its namespace, assigned when the path is first used. */
	readonly #inodes = new Map<string, string>();
	#nextVni = 555_000;
	#nextInode = 4_026_532_000;

	/** From now on, both paths refer to the same namespace. */
	link(path: string, other: string): void {
		this.#inodes.set(normalize(other), this.#inodeAt(path));
	}

	/** From now on, the path refers to another namespace. */
	replace(path: string): void {
		this.#inodes.delete(normalize(path));
	}

	async reserve(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<PodNetwork> {
		throwIfAborted(signal);
		const netns = this.#identityAt(netnsPath);
		const tenant = this.#tenantOf(netns.inode);
		if (tenant !== undefined && tenant.sandboxId !== sandboxId) {
			throw new AdaptorError({
				code: 'already-exists',
				what: 'The network namespace belongs to another sandbox',
				where: {netns: netnsPath, sandbox: tenant.sandboxId},
			});
		}

		const vxlanId = this.#nextVni++;
		this.tunnels.set(vxlanId, undefined);
		this.#tenancies.add({sandboxId, vni: vxlanId, inode: netns.inode});
		return {
			netnsPath,
			netns,
			podIp: '10.244.0.5/24',
			podHwAddr: '0a:58:0a:f4:00:05',
			interface: 'eth0',
			workerNodeIp: '192.168.122.10/24',
			tunnelType: 'vxlan',
			routes: [],
			neighbors: [],
			mtu: 1450,
			index: 0,
			vxlanPort: 4789,
			vxlanId,
			dedicated: false,
			externalNetViaPodVm: false,
		};
	}

	async releaseByNetns(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		const tenant = this.#tenantOf(this.#inodeAt(netnsPath));
		if (tenant?.sandboxId === sandboxId && this.tunnels.get(tenant.vni) === undefined) {
			this.tunnels.delete(tenant.vni);
		}
	}

	async presence({netnsPath, netns}: PodNetwork, _signal: AbortSignal): Promise<Presence> {
		const isAnother = netns !== undefined && netns.inode !== this.#inodeAt(netnsPath);
		const presence = this.presences.get(netnsPath) ?? (isAnother ? 'gone' : 'present');
		return presence === 'gone' && netns === undefined ? 'unknown' : presence;
	}

	async identify(network: PodNetwork, signal: AbortSignal): Promise<PodNetwork> {
		throwIfAborted(signal);
		const isSeen = (this.presences.get(network.netnsPath) ?? 'present') === 'present';
		return network.netns === undefined && isSeen
			? {...network, netns: this.#identityAt(network.netnsPath)}
			: network;
	}

	async attach({vxlanId}: PodNetwork, vmAddress: string, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		if (!this.tunnels.has(vxlanId)) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'The VNI is not reserved',
				where: {vni: vxlanId},
			});
		}

		this.tunnels.set(vxlanId, vmAddress);
		this.untracked.set(vxlanId, vmAddress);
	}

	adopt(): void {
		// The map already contains the reservations of earlier runs.
	}

	async detach({vxlanId}: PodNetwork, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		if (this.tunnels.has(vxlanId)) {
			this.tunnels.set(vxlanId, undefined);
		}
	}

	async release({vxlanId}: PodNetwork, _signal: AbortSignal): Promise<void> {
		this.tunnels.delete(vxlanId);
		this.untracked.delete(vxlanId);
	}

	async releaseByVni(vni: number, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		this.untracked.delete(vni);
	}

	#tenantOf(inode: string): Tenancy | undefined {
		return this.#tenancies.values().find(tenancy => tenancy.inode === inode && this.tunnels.has(tenancy.vni));
	}

	#identityAt(path: string): NetnsIdentity {
		const directory = {device: '25', inode: String(dirname(normalize(path)).length)};
		return {device: '4', inode: this.#inodeAt(path), directory};
	}

	#inodeAt(path: string): string {
		const known = this.#inodes.get(normalize(path)) ?? String(this.#nextInode++);
		this.#inodes.set(normalize(path), known);
		return known;
	}
}

function throwIfAborted(signal: AbortSignal): void {
	if (signal.aborted) {
		throw toError(signal.reason);
	}
}

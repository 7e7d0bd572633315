/**
 * What this process knows of the tunnels that are its own. A namespace has one tenancy at a time, whatever path leads to it; a tenancy outlives its
 * namespace until it is released. No I/O.
 */
import type {NetnsIdentity, PodNetwork, SandboxId} from '../sandbox/ports.ts';
import {isSame} from './netns.ts';

export interface Tenancy {
	/** Unknown when it was attached from the record of an earlier run. */
	readonly sandboxId: SandboxId | undefined;
	readonly netnsPath: string;
	readonly netns: NetnsIdentity;
	readonly vni: number;
	/** Addresses that are, or may be, in the NOTRACK set for it: the VM's, and any before it until their removal has succeeded. */
	readonly remotes: Set<string>;
	/** An earlier run's, whose elements in the NOTRACK set we do not know. */
	readonly isAdopted: boolean;
}

export class Tenancies {
	readonly #all = new Set<Tenancy>();
	/** Those whose namespace is gone while its inode is another's. */
	readonly #homeless = new WeakSet<Tenancy>();

	add(tenancy: Tenancy): void {
		this.#all.add(tenancy);
	}

	delete(tenancy: Tenancy): void {
		this.#all.delete(tenancy);
	}

	/** It is in no namespace any more: to be released all the same. */
	evict(tenancy: Tenancy): void {
		this.#homeless.add(tenancy);
	}

	/** Who has the namespace. */
	in(netns: NetnsIdentity): Tenancy | undefined {
		return this.#all.values().find(tenancy => isSame(tenancy.netns, netns) && !this.#homeless.has(tenancy));
	}

	/** The tenancy that a network stands for, also when its namespace is gone. */
	of({netns, netnsPath, vxlanId}: PodNetwork): Tenancy | undefined {
		return this.#all.values().find(tenancy => tenancy.vni === vxlanId && (netns === undefined ? tenancy.netnsPath === netnsPath : isSame(tenancy.netns, netns)));
	}

	/** What a sandbox has reserved by this path, also when the namespace is gone. */
	reservedBy(sandboxId: SandboxId, netnsPath: string): Tenancy | undefined {
		return this.#all.values().find(tenancy => tenancy.sandboxId === sandboxId && tenancy.netnsPath === netnsPath);
	}

	hasVni(vni: number): boolean {
		return this.#all.values().some(tenancy => tenancy.vni === vni);
	}

	/** Those of the addresses that no tunnel but `except` leads to: libvirt gives an address to the next VM as soon as the last has ended. */
	unused(addresses: ReadonlySet<string>, except: Tenancy | undefined): string[] {
		const others = this.#all.values().filter(tenancy => tenancy !== except).toArray();
		return [...addresses].filter(address => !others.some(({remotes}) => remotes.has(address)));
	}
}

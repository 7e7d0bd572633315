/**
 * What this process knows of the tunnels that are its own. A namespace has one tenancy at a time, whatever path leads
 * to it; a tenancy outlives its namespace until it is released. No I/O.
 */
import type {NetnsIdentity, PodNetwork, SandboxId} from '../sandbox/ports.ts';
import {isSame} from './netns.ts';
import type {Binding} from './nft.ts';

export interface Tenancy {
	/** Unknown when it was attached from the record of an earlier run. */
	readonly sandboxId: SandboxId | undefined;
	readonly netnsPath: string;
	readonly netns: NetnsIdentity;
	readonly vni: number;
	/** The VM's, once the tunnel leads to one. */
	address: string | undefined;
	/**
	 * What may still be in the node's table and does not belong there any more: kept until its removal has succeeded.
	 */
	former: readonly Binding[];
	/** An earlier run's, whose elements in the node's table are not all known. */
	readonly isAdopted: boolean;
	/** Adopted, and neither attached nor closed by this run: another daemon may still do that. */
	isUnseen: boolean;
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
		return this.#all
			.values()
			.find(
				tenancy =>
					tenancy.vni === vxlanId &&
					(netns === undefined ? tenancy.netnsPath === netnsPath : isSame(tenancy.netns, netns)),
			);
	}

	/** What a sandbox has reserved by this path, also when the namespace is gone. */
	reservedBy(sandboxId: SandboxId, netnsPath: string): Tenancy | undefined {
		return this.#all.values().find(tenancy => tenancy.sandboxId === sandboxId && tenancy.netnsPath === netnsPath);
	}

	hasVni(vni: number): boolean {
		return this.#all.values().some(tenancy => tenancy.vni === vni);
	}

	/** Those of which it is not known where they lead. */
	unseen(): Tenancy[] {
		return this.#all
			.values()
			.filter(({isUnseen, address}) => isUnseen && address === undefined)
			.toArray();
	}

	/** What the node's table is to have. */
	bindings(): Binding[] {
		return this.#all.values().flatMap(bindingOf).toArray();
	}

	/** What it is to have no more. */
	former(): Binding[] {
		return this.#all
			.values()
			.flatMap(({former}) => former)
			.toArray();
	}

	/** Their removal has succeeded. @param removed from `former()` */
	forgetFormer(removed: readonly Binding[]): void {
		for (const tenancy of this.#all) {
			tenancy.former = tenancy.former.filter(each => !removed.includes(each));
		}
	}

	/** Whether a tunnel has the binding, or may have it for all that is known. */
	mayHave({address, vni}: Binding): boolean {
		return this.#all
			.values()
			.some(
				tenancy =>
					tenancy.vni === vni &&
					(tenancy.address === address || (tenancy.isUnseen && tenancy.address === undefined)),
			);
	}
}

/** From then on the tunnel leads to the address, or nowhere, and by the word of this run. */
export function lead(tenancy: Tenancy, address: string | undefined): void {
	tenancy.isUnseen = false;
	tenancy.former = [...tenancy.former, ...bindingOf(tenancy)].filter(
		former => former.address !== address || former.vni !== tenancy.vni,
	);
	tenancy.address = address;
}

function bindingOf({address, vni}: Tenancy): Binding[] {
	return address === undefined ? [] : [{address, vni}];
}

/**
 * The tunnels that this process knows. A tenancy is the use of a network namespace by one sandbox. A namespace has at
 * most one tenancy at a time, whatever its path is. A tenancy remains after its namespace is gone, until it is
 * released. No I/O.
 */
import type {NetnsIdentity, PodNetwork, SandboxId} from '../sandbox/ports.ts';
import {isSame} from './netns.ts';
import type {Binding} from './nft.ts';

export interface Tenancy {
	/** Unknown if it was attached from the record of an earlier run. */
	readonly sandboxId: SandboxId | undefined;
	readonly netnsPath: string;
	readonly netns: NetnsIdentity;
	readonly vni: number;
	/** Address of the VM, if the tunnel is attached. */
	address: string | undefined;
	/** Outdated bindings that may still be in the nftables table; kept until they are removed. */
	former: readonly Binding[];
	/** From an earlier run, so not all of its elements in the nftables table are known. */
	readonly isAdopted: boolean;
	/** Adopted, and not yet attached or closed by this run. Another daemon may still do that. */
	isUnseen: boolean;
}

export class Tenancies {
	readonly #all = new Set<Tenancy>();
	/** Tenancies whose namespace is gone and whose inode was reused. */
	readonly #evicted = new WeakSet<Tenancy>();

	add(tenancy: Tenancy): void {
		this.#all.add(tenancy);
	}

	delete(tenancy: Tenancy): void {
		this.#all.delete(tenancy);
	}

	/** The namespace of the tenancy is gone. It still has to be released. */
	evict(tenancy: Tenancy): void {
		this.#evicted.add(tenancy);
	}

	/** The tenancy in the namespace. */
	in(netns: NetnsIdentity): Tenancy | undefined {
		return this.#all.values().find(tenancy => isSame(tenancy.netns, netns) && !this.#evicted.has(tenancy));
	}

	/** The tenancy of a network, also if its namespace is gone. */
	of({netns, netnsPath, vxlanId}: PodNetwork): Tenancy | undefined {
		return this.#all
			.values()
			.find(
				tenancy =>
					tenancy.vni === vxlanId &&
					(netns === undefined ? tenancy.netnsPath === netnsPath : isSame(tenancy.netns, netns)),
			);
	}

	/** The tenancy that a sandbox reserved with this path, also if the namespace is gone. */
	reservedBy(sandboxId: SandboxId, netnsPath: string): Tenancy | undefined {
		return this.#all.values().find(tenancy => tenancy.sandboxId === sandboxId && tenancy.netnsPath === netnsPath);
	}

	hasVni(vni: number): boolean {
		return this.#all.values().some(tenancy => tenancy.vni === vni);
	}

	/** Tenancies whose remote address is unknown. */
	unseen(): Tenancy[] {
		return this.#all
			.values()
			.filter(({isUnseen, address}) => isUnseen && address === undefined)
			.toArray();
	}

	/** The bindings that the nftables table must contain. */
	bindings(): Binding[] {
		return this.#all.values().flatMap(bindingOf).toArray();
	}

	/** The bindings to remove from the nftables table. */
	former(): Binding[] {
		return this.#all
			.values()
			.flatMap(({former}) => former)
			.toArray();
	}

	/** Forgets bindings that were removed. @param removed a result of `former()` */
	forgetFormer(removed: readonly Binding[]): void {
		for (const tenancy of this.#all) {
			tenancy.former = tenancy.former.filter(each => !removed.includes(each));
		}
	}

	/** Whether a tunnel has, or may have, the binding (a pair of VM address and VNI). */
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

/** Sets the remote address of the tunnel, or none. The tenancy is no longer `isUnseen`. */
export function setRemote(tenancy: Tenancy, address: string | undefined): void {
	tenancy.isUnseen = false;
	tenancy.former = [...tenancy.former, ...bindingOf(tenancy)].filter(
		former => former.address !== address || former.vni !== tenancy.vni,
	);
	tenancy.address = address;
}

function bindingOf({address, vni}: Tenancy): Binding[] {
	return address === undefined ? [] : [{address, vni}];
}

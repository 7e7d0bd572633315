/**
 * Binds each tunnel to its VM: updates the nftables table of the node (nft.ts) from the tenancies.
 *
 * One transaction runs at a time, and contains all tunnels of this process. So the next transaction restores flushed
 * rules, and a new table does not close a live tunnel. For the same reason, the remotes of tunnels of an earlier run
 * are read before the first transaction. Elements of unknown tunnels may belong to another daemon. They stay until the
 * kernel proves that the VNI has no tunnel.
 */
import {Semaphore} from '../core/concurrency/semaphore.ts';
import {CommandError, means} from './command-error.ts';
import type {Iproute2} from './iproute2.ts';
import {
	noTable,
	parseTable,
	table,
	transaction,
	type Binding,
	type Change,
	type GuardedVnis,
	type TableState,
} from './nft.ts';
import {tunnelInterface} from './plan.ts';
import type {SpawnServer} from './spawn-server.ts';
import {setRemote, type Tenancies, type Tenancy} from './tenancies.ts';

export class TunnelGuard {
	readonly #programs: SpawnServer;
	readonly #iproute2: Iproute2;
	readonly #guarded: GuardedVnis;
	readonly #tenancies: Tenancies;
	readonly #turn = new Semaphore(1);
	/** Adopted tenancies whose device was inspected. */
	readonly #inspected = new WeakSet<Tenancy>();

	constructor(programs: SpawnServer, iproute2: Iproute2, guarded: GuardedVnis, tenancies: Tenancies) {
		this.#programs = programs;
		this.#iproute2 = iproute2;
		this.#guarded = guarded;
		this.#tenancies = tenancies;
	}

	/**
	 * Checks whether nft and the kernel support the guard: the kernel verifies a whole transaction, then discards it.
	 * @throws CommandError
	 */
	async check(signal: AbortSignal): Promise<void> {
		const result = await this.#programs.run(
			{
				argv: ['nft', '-c', '-f', '-'],
				stdin: transaction(this.#guarded, {add: [{address: '192.0.2.1', vni: this.#guarded.lowest}]}),
			},
			signal,
		);
		if (result.status !== 0) {
			throw new CommandError('bind tunnels to their VMs', 'nft', result, {table});
		}
	}

	/** Accepts packets of the tunnel only from this address. */
	async open(tenancy: Tenancy, address: string, signal: AbortSignal): Promise<void> {
		using _ = await this.#turn.acquire(signal);
		const state = await this.#stateFor(tenancy, signal);
		setRemote(tenancy, address);
		await this.#write(this.#strays(state, [tenancy.vni]), signal);
	}

	/**
	 * Accepts no further packets of the tunnel.
	 * @param tenancy absent for a tunnel of an earlier run that is known only by its VNI; known tenancies are not
	 * changed
	 */
	async close(vni: number, tenancy: Tenancy | undefined, signal: AbortSignal): Promise<void> {
		using _ = await this.#turn.acquire(signal);
		// Another daemon may have attached a tunnel that was only reserved here, and may have ended.
		const state =
			tenancy?.isAdopted === false && tenancy.address === undefined
				? await this.read(signal)
				: await this.#stateFor(tenancy, signal);
		if (tenancy !== undefined) {
			setRemote(tenancy, undefined);
		}

		const strays = this.#strays(state, [vni]);
		if (strays.tunnels.length > 0 || strays.legacy.length > 0 || (tenancy?.former.length ?? 0) > 0) {
			await this.#write(strays, signal);
		}
	}

	/**
	 * Restores the table, and removes elements without a tunnel.
	 * @returns the number of packets that the table had dropped
	 */
	async reconcile(signal: AbortSignal): Promise<number> {
		using _ = await this.#turn.acquire(signal);
		const state = await this.read(signal);
		await this.#lookUp(state, signal);
		const all = [...state.tunnels, ...state.legacy].map(({vni}) => vni);
		const known = all.filter(vni => this.#tenancies.hasVni(vni));
		await this.#write(this.#strays(state, known), signal);
		const free = await this.#withoutTunnel(new Set(all).difference(new Set(known)), signal);
		if (free.length > 0) {
			await this.#write(this.#strays(state, free), signal);
		}

		return state.dropped;
	}

	async read(signal: AbortSignal): Promise<TableState> {
		const result = await this.#programs.run({argv: ['nft', '-j', 'list', 'table', 'ip', table]}, signal);
		if (result.status === 0) {
			return parseTable(result.stdout);
		}

		const error = new CommandError('read which tunnels are bound to their VMs', 'nft', result, {table});
		if (means(error, 'not-found')) {
			return noTable;
		}

		throw error;
	}

	/** Reads the table before a change, if there are adopted tenancies or the tenancy is unknown. */
	async #stateFor(tenancy: Tenancy | undefined, signal: AbortSignal): Promise<TableState> {
		if (tenancy?.isAdopted === false && this.#tenancies.unseen().every(each => this.#inspected.has(each))) {
			return noTable;
		}

		const state = await this.read(signal);
		await this.#lookUp(state, signal);
		return state;
	}

	/**
	 * Finds the remotes of the tunnels of an earlier run: from the table, or from the device if the table does not have
	 * exactly one address.
	 */
	async #lookUp(state: TableState, signal: AbortSignal): Promise<void> {
		await Promise.all(
			this.#tenancies.unseen().map(async tenancy => {
				const [bound, ...more] = state.tunnels.filter(({vni}) => vni === tenancy.vni);
				const isLegacy = state.legacy.some(({vni}) => vni === tenancy.vni);
				if (bound !== undefined && more.length === 0 && !isLegacy) {
					tenancy.address = bound.address;
				} else if (bound !== undefined || isLegacy || !this.#inspected.has(tenancy)) {
					tenancy.address = await this.#remoteOf(tenancy, signal);
				}
			}),
		);
	}

	/** Undefined if the tunnel is only reserved, or is not visible. */
	async #remoteOf(tenancy: Tenancy, signal: AbortSignal): Promise<string | undefined> {
		try {
			const {links} = await this.#iproute2.inspect(tenancy.netnsPath, signal);
			this.#inspected.add(tenancy);
			const vxlan = links.find(({name}) => name === tunnelInterface)?.vxlan;
			return vxlan?.vni === tenancy.vni ? vxlan.remote : undefined;
		} catch (error) {
			signal.throwIfAborted();
			if (error instanceof CommandError) {
				this.#inspected.add(tenancy);
				return undefined;
			}

			throw error;
		}
	}

	/** The elements with these VNIs that belong to no tenancy. */
	#strays({tunnels, legacy}: TableState, vnis: readonly number[]): Pick<TableState, 'tunnels' | 'legacy'> {
		const bindings = this.#tenancies.bindings();
		return {
			tunnels: tunnels.filter(each => vnis.includes(each.vni) && !this.#tenancies.mayHave(each)),
			// The transaction moves elements of tenancies to `tunnels`.
			legacy: legacy.filter(
				each => vnis.includes(each.vni) && (isAmong(bindings, each) || !this.#tenancies.mayHave(each)),
			),
		};
	}

	/** The VNIs without a tunnel in any namespace of this node. */
	async #withoutTunnel(vnis: ReadonlySet<number>, signal: AbortSignal): Promise<number[]> {
		const answers = await Promise.all(
			Array.from(vnis, async vni => {
				try {
					return (await this.#iproute2.isVniFree(vni, this.#guarded.port, signal)) ? [vni] : [];
				} catch (error) {
					signal.throwIfAborted();
					// No proof: the next round retries.
					if (error instanceof CommandError) {
						return [];
					}

					throw error;
				}
			}),
		);
		return answers.flat();
	}

	async #write({tunnels, legacy}: Pick<TableState, 'tunnels' | 'legacy'>, signal: AbortSignal): Promise<void> {
		const add = this.#tenancies.bindings();
		const former = this.#tenancies.former();
		const remove = [...former, ...tunnels].filter(each => !isAmong(add, each));
		await this.#run({add, remove, removeLegacy: legacy.map(({address}) => address)}, signal);
		this.#tenancies.forgetFormer(former);
	}

	async #run(change: Change, signal: AbortSignal): Promise<void> {
		const result = await this.#programs.run(
			{argv: ['nft', '-f', '-'], stdin: transaction(this.#guarded, change)},
			signal,
		);
		if (result.status !== 0) {
			throw new CommandError('bind the tunnels to their VMs', 'nft', result, {table});
		}
	}
}

function isAmong(bindings: readonly Binding[], {address, vni}: Binding): boolean {
	return bindings.some(each => each.address === address && each.vni === vni);
}

/**
 * Keeps the tunnels out of connection tracking: one nftables table with one set of the VMs' addresses, so that the number of rules does
 * not grow with them. Tracking would cost an entry per tunnel and could drop packets under load; without it everything still works.
 *
 * Every transaction states the whole table, so it does not matter whether there was one, and `nft flush ruleset` by somebody else heals
 * with the next pod. Elements are only ever added and removed one by one: a second daemon may have its own in the set. Each carries its
 * VNI as a comment, so that it can be found when the pod's namespace is gone and nobody remembers the VM's address.
 */
import {isIPv4} from 'node:net';
import {CommandError, means} from './command-error.ts';
import type {SpawnServer} from './spawn-server.ts';

const table = 'caa_peerpods';
const set = 'vms';

export interface Untracked {
	readonly address: string;
	readonly vni: number;
}

export interface Change {
	readonly add?: Untracked;
	/** Addresses. */
	readonly remove?: readonly string[];
}

/** Makes the table if need be and changes its set, all or nothing. Adding what is there and removing what is not succeeds. Pure. */
export function transaction(port: number, {add, remove = []}: Change): string {
	const match = `udp dport ${port} notrack`;
	return `table ip ${table} {
	set ${set} { type ipv4_addr; }
	chain out { type filter hook output priority raw; }
	chain pre { type filter hook prerouting priority raw; }
}
flush chain ip ${table} out
flush chain ip ${table} pre
add rule ip ${table} out ip daddr @${set} ${match}
add rule ip ${table} pre ip saddr @${set} ${match}
${remove.map(without).join('')}${add === undefined ? '' : `${without(add.address)}add element ip ${table} ${set} { ${add.address} comment "vni ${add.vni}" }\n`}`;
}

/** nft 1.0.6 has no `destroy element`: what was just added can be deleted. It also rids the element of its old comment. */
function without(address: string): string {
	return `add element ip ${table} ${set} { ${address} }\ndelete element ip ${table} ${set} { ${address} }\n`;
}

/** The set's elements from `nft -j list set`. Pure. Elements without a comment of ours are left out. */
export function parseElements(output: string): Untracked[] {
	const {nftables = []} = JSON.parse(output) as {nftables?: ReadonlyArray<{set?: {elem?: readonly unknown[]}}>};
	return nftables.flatMap(entry => entry.set?.elem ?? []).flatMap(element => {
		const {val, comment} = (element as {elem?: {val?: unknown; comment?: unknown}}).elem ?? {};
		const vni = typeof comment === 'string' ? /^vni (\d+)$/v.exec(comment)?.[1] : undefined;
		return typeof val === 'string' && vni !== undefined && isIPv4(val) ? [{address: val, vni: Number(vni)}] : [];
	});
}

export class ConntrackBypass {
	readonly #programs: SpawnServer;
	readonly #port: number;

	constructor(programs: SpawnServer, port: number) {
		this.#programs = programs;
		this.#port = port;
	}

	async change(change: Change, signal: AbortSignal): Promise<void> {
		const result = await this.#programs.run({argv: ['nft', '-f', '-'], stdin: transaction(this.#port, change)}, signal);
		if (result.status !== 0) {
			throw new CommandError('change the NOTRACK table', 'nft', result, {table});
		}
	}

	/** The addresses that a VNI is recorded with. */
	async addressesOf(vni: number, signal: AbortSignal): Promise<string[]> {
		const result = await this.#programs.run({argv: ['nft', '-j', 'list', 'set', 'ip', table, set]}, signal);
		if (result.status !== 0) {
			const error = new CommandError('read the NOTRACK table', 'nft', result, {table});
			if (means(error, 'not-found')) {
				return [];
			}

			throw error;
		}

		return parseElements(result.stdout).filter(element => element.vni === vni).map(({address}) => address);
	}
}

/**
 * The node's nftables table as text. Pure. It has the tunnels as one set of pairs, a VM's address and a VNI, so that
 * the number of rules does not grow with them:
 *
 *   out, pre   keep the tunnels' packets out of connection tracking, which would cost an entry per tunnel and could
 *              drop packets under load
 *   guard      drops VXLAN packets of our VNIs that do not come from the tunnel's VM; for the choice of the hook see
 *              docs/adr/0026-tunnel-guard.md
 *
 * Each transaction states the whole table, so it does not matter whether there was one, and `nft flush ruleset` by
 * somebody else heals with the next. Elements are added and removed one by one: a second daemon may have its own in the
 * set.
 */
import {isIPv4} from 'node:net';

export const table = 'caa_peerpods';

/** A tunnel's far end: packets with this VNI are accepted from this address. */
export interface Binding {
	/** The VM's. */
	readonly address: string;
	readonly vni: number;
}

/** What the guard is about. VNIs beyond the range belong to others that share the port, and are never touched. */
export interface GuardedVnis {
	readonly port: number;
	readonly lowest: number;
	readonly highest: number;
}

export interface Change {
	readonly add?: readonly Binding[];
	readonly remove?: readonly Binding[];
	/** Addresses to be removed from the set of earlier versions. */
	readonly removeLegacy?: readonly string[];
}

/** What the kernel has of the table. */
export interface TableState {
	readonly tunnels: readonly Binding[];
	/**
	 * What a daemon of an earlier version has attached, which knows no `tunnels`. The guard accepts any VNI from these
	 * addresses: such a daemon may be at work beside this one during an update, or after it, when the update is undone.
	 */
	readonly legacy: readonly Binding[];
	/** Packets that the guard has dropped since the table was made. */
	readonly dropped: number;
}

export const noTable: TableState = {tunnels: [], legacy: [], dropped: 0};

/** RFC 7348, section 5: the UDP header is 8 bytes long, and bytes 4 to 6 of what follows are the VNI. */
const vniField = '@th,96,24';
/** After DNAT, IPVS and SNAT of incoming packets (100), which may still change port and address. */
const guardPriority = 300;

/**
 * Makes the table if need be and changes its sets, all or nothing. Adding what is there and removing what is not
 * succeeds.
 */
export function transaction(
	{port, lowest, highest}: GuardedVnis,
	{add = [], remove = [], removeLegacy = []}: Change,
): string {
	const match = `udp dport ${port}`;
	const rule = (chain: string, text: string): string => `add rule ip ${table} ${chain} ${match} ${text}\n`;
	return (
		`table ip ${table} {
	set vms { type ipv4_addr; }
	set tunnels { typeof ip saddr . ${vniField}; }
	counter strangers { }
	chain out { type filter hook output priority raw; }
	chain pre { type filter hook prerouting priority raw; }
	chain guard { type filter hook input priority ${guardPriority}; }
}
${['out', 'pre', 'guard'].map(chain => `flush chain ip ${table} ${chain}\n`).join('')}` +
		rule('out', `ip daddr . ${vniField} @tunnels notrack`) +
		rule('out', 'ip daddr @vms notrack') +
		rule('pre', `ip saddr . ${vniField} @tunnels notrack`) +
		rule('pre', 'ip saddr @vms notrack') +
		rule(
			'guard',
			`${vniField} ${lowest}-${highest} ip saddr . ${vniField} != @tunnels ip saddr != @vms counter name strangers drop`,
		) +
		elements('add', 'tunnels', add.map(element)) +
		without('tunnels', remove.map(element)) +
		without('vms', removeLegacy)
	);
}

function element({address, vni}: Binding): string {
	return `${address} . ${vni}`;
}

/** nft 1.0.6 has no `destroy element`: what was just added can be deleted. */
function without(set: string, all: readonly string[]): string {
	return elements('add', set, all) + elements('delete', set, all);
}

/** Each once: the second deletion of an element fails. */
function elements(verb: 'add' | 'delete', set: string, all: readonly string[]): string {
	return all.length === 0 ? '' : `${verb} element ip ${table} ${set} { ${[...new Set(all)].join(', ')} }\n`;
}

interface Entry {
	readonly set?: {readonly name?: unknown; readonly elem?: readonly unknown[]};
	readonly counter?: {readonly name?: unknown; readonly packets?: unknown};
}

/** What `nft -j list table` tells. Elements that are not ours are left out. */
export function parseTable(output: string): TableState {
	const {nftables = []} = JSON.parse(output) as {nftables?: readonly Entry[]};
	const elementsOf = (name: string): unknown[] =>
		nftables.flatMap(({set}) => (set?.name === name ? (set.elem ?? []) : []));
	const packets = nftables.find(({counter}) => counter?.name === 'strangers')?.counter?.packets;
	return {
		tunnels: elementsOf('tunnels').flatMap(parsePair),
		legacy: elementsOf('vms').flatMap(parseLegacy),
		dropped: typeof packets === 'number' ? packets : 0,
	};
}

function parsePair(entry: unknown): Binding[] {
	const [address, vni] =
		typeof entry === 'object' && entry !== null && 'concat' in entry && Array.isArray(entry.concat)
			? (entry.concat as unknown[])
			: [];
	// nft prints a number of no known type as it sees fit, `555001` or `"0x877f9"`.
	return binding(address, typeof vni === 'string' || typeof vni === 'number' ? Number(vni) : undefined);
}

/** Earlier versions noted the VNI as a comment. */
function parseLegacy(entry: unknown): Binding[] {
	const {val, comment} = (entry as {elem?: {val?: unknown; comment?: unknown}}).elem ?? {};
	const vni = typeof comment === 'string' ? /^vni (\d+)$/v.exec(comment)?.[1] : undefined;
	return binding(val, vni === undefined ? undefined : Number(vni));
}

function binding(address: unknown, vni: number | undefined): Binding[] {
	return typeof address === 'string' && isIPv4(address) && vni !== undefined && Number.isInteger(vni)
		? [{address, vni}]
		: [];
}

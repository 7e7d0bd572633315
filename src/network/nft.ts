/**
 * The nftables table of the node as text. Pure. It stores the tunnels as one set of pairs (VM address, VNI), so the
 * number of rules does not depend on the number of tunnels:
 *
 *   out, pre   exclude tunnel packets from connection tracking, which would need an entry per tunnel and could drop
 *              packets under load
 *   guard      drops VXLAN packets of the reserved VNIs that are not from the VM of the tunnel; for the choice of the
 *              hook see docs/adr/0026-tunnel-guard.md
 *
 * Each transaction contains the whole table, so it also creates the table, or restores it after `nft flush ruleset` by
 * another program. Elements are added and removed individually, because a second daemon may have elements in the set.
 */
import {isIPv4} from 'node:net';

export const table = 'caa_peerpods';

/** The remote end of a tunnel: packets with this VNI are accepted from this address. */
export interface Binding {
	/** Address of the VM. */
	readonly address: string;
	readonly vni: number;
}

/** The range of VNIs to guard. VNIs outside of it belong to other users of the port and are never touched. */
export interface GuardedVnis {
	readonly port: number;
	readonly lowest: number;
	readonly highest: number;
}

export interface Change {
	readonly add?: readonly Binding[];
	readonly remove?: readonly Binding[];
	/** Addresses to remove from the set of earlier versions. */
	readonly removeLegacy?: readonly string[];
}

/** The table in the kernel. */
export interface TableState {
	readonly tunnels: readonly Binding[];
	/**
	 * VMs that a daemon of an earlier version attached, without an entry in `tunnels`. The guard accepts any VNI from
	 * these addresses, because such a daemon may run during an update, or after a downgrade.
	 */
	readonly legacy: readonly Binding[];
	/** Number of packets that the guard dropped since the table was created. */
	readonly dropped: number;
}

export const noTable: TableState = {tunnels: [], legacy: [], dropped: 0};

/** RFC 7348, section 5: the UDP header has 8 bytes; bytes 4 to 6 after it are the VNI. */
const vniField = '@th,96,24';
/** After DNAT, IPVS and SNAT of incoming packets (100), which may change port and address. */
const guardPriority = 300;

/**
 * Creates the table if necessary and changes its sets atomically. Adding existing and removing missing elements
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

/**
 * nft 1.0.6 has no `destroy element`, and deleting a missing element fails. So the elements are added before they are
 * deleted.
 */
function without(set: string, all: readonly string[]): string {
	return elements('add', set, all) + elements('delete', set, all);
}

/** Without duplicates: a second deletion of an element fails. */
function elements(verb: 'add' | 'delete', set: string, all: readonly string[]): string {
	return all.length === 0 ? '' : `${verb} element ip ${table} ${set} { ${[...new Set(all)].join(', ')} }\n`;
}

interface Entry {
	readonly set?: {readonly name?: unknown; readonly elem?: readonly unknown[]};
	readonly counter?: {readonly name?: unknown; readonly packets?: unknown};
}

/** Parses `nft -j list table`. Ignores foreign elements. */
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
	// nft prints a number without a type in different ways: `555001` or `"0x877f9"`.
	return binding(address, typeof vni === 'string' || typeof vni === 'number' ? Number(vni) : undefined);
}

/** Earlier versions stored the VNI as a comment. */
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

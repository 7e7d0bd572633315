/**
 * Parses the output of `ip -j -d`. Pure; knows the field names of iproute2, but not their use.
 * Source: iproute2 6.1, ip/ipaddress.c, ip/iproute.c, ip/ipneigh.c, ip/iplink_vxlan.c. Fields that are not read are
 * ignored.
 */
import {AdaptorError} from '../core/errors.ts';

export interface Link {
	readonly name: string;
	readonly mtu: number;
	readonly mac: string;
	readonly isLoopback: boolean;
	readonly addresses: readonly Address[];
	/** The alias of the device. A tunnel has the id of its sandbox. */
	readonly alias?: string;
	/** Only present for a VXLAN device. */
	readonly vxlan?: Vxlan;
}

export interface Address {
	readonly family: string;
	readonly local: string;
	readonly prefixLength: number;
	readonly scope: string;
	/** Another address of the same subnet is the primary one. */
	readonly isSecondary: boolean;
}

export interface Vxlan {
	readonly vni: number;
	readonly port: number;
	readonly learning: boolean;
	/** Metadata mode: one device for all VNIs, which some CNI plugins use. */
	readonly external: boolean;
	readonly remote?: string;
}

export interface Route {
	readonly type: string;
	/** A prefix; `0.0.0.0/0` is the default route. */
	readonly dst: string;
	readonly gateway?: string;
	/** Absent if there are several next hops. */
	readonly dev?: string;
	readonly protocol: string;
	/** As iproute2 names it: `global`, `link`, `host`. */
	readonly scope: string;
	readonly metric: number;
	/** The fixed source address of the route, if it has one. */
	readonly source?: string;
}

export interface Neighbour {
	readonly address: string;
	readonly dev: string;
	readonly mac: string;
}

/**
 * Input of `ip -d -j -batch -`; the answers have this order. Without `-4`, because that would omit links without IPv4.
 */
export const inspectionBatch = 'addr show\nroute show table main\nneigh show nud permanent\n';

export interface Inspection {
	readonly links: readonly Link[];
	/** IPv4, table main. */
	readonly routes: readonly Route[];
	/** Permanent neighbours. */
	readonly neighbours: readonly Neighbour[];
}

/** Parses the answers to `inspectionBatch`. @throws 'internal' for other output */
export function parseInspection(output: string): Inspection {
	const [links, routes, neighbours] = answers(output, 3);
	return {links: links.map(link), routes: routes.map(route), neighbours: neighbours.map(neighbour)};
}

/** Parses the answers to `route get` and `addr show`. */
export function parseRouteAndLinks(output: string): {readonly route: Route; readonly links: readonly Link[]} {
	const [[chosen], links] = answers(output, 2);
	if (chosen === undefined) {
		throw new AdaptorError({code: 'internal', what: 'ip printed no route'});
	}

	return {route: route(chosen), links: links.map(link)};
}

/** Parses the answer to one `link show` or `addr show`. */
export function parseLinks(output: string): Link[] {
	return answers(output, 1)[0].map(link);
}

type Fields = Readonly<Record<string, unknown>>;
type Tuple<T, N extends number> = N extends 1 ? [T] : N extends 2 ? [T, T] : [T, T, T];

/** One JSON array per line. ip prints some empty arrays on two lines, `[ ]` and a line feed. */
function answers<N extends 1 | 2 | 3>(output: string, count: N): Tuple<readonly Fields[], N> {
	let arrays: unknown[];
	try {
		arrays = output
			.split('\n')
			.filter(line => line.trim() !== '')
			.map(line => JSON.parse(line) as unknown);
	} catch (error) {
		throw new AdaptorError({
			code: 'internal',
			what: 'The output of ip is not JSON',
			remedy: 'iproute2 5.0 or later is required.',
			cause: error,
		});
	}

	if (arrays.length !== count || !arrays.every(Array.isArray)) {
		throw new AdaptorError({
			code: 'internal',
			what: 'The output of ip does not match the request',
			where: {expected: count, got: arrays.length},
		});
	}

	return arrays.map(array =>
		(array as unknown[]).map(fields).filter(entry => Object.keys(entry).length > 0),
	) as unknown as Tuple<readonly Fields[], N>;
}

function link(entry: Fields): Link {
	const linkinfo = fields(entry['linkinfo']);
	const data = fields(linkinfo['info_data']);
	const flags = list(entry['flags']);
	const remote = text(data['remote']);
	const alias = text(entry['ifalias']);
	return {
		name: text(entry['ifname']),
		mtu: number(entry['mtu']),
		mac: text(entry['address']),
		isLoopback: flags.includes('LOOPBACK'),
		addresses: list(entry['addr_info'])
			.map(fields)
			.map(address => ({
				family: text(address['family']),
				local: text(address['local']),
				prefixLength: number(address['prefixlen']),
				scope: text(address['scope']),
				isSecondary: address['secondary'] === true,
			})),
		...(alias === '' ? {} : {alias}),
		...(linkinfo['info_kind'] === 'vxlan'
			? {
					vxlan: {
						vni: number(data['id']),
						port: number(data['port']),
						learning: data['learning'] === true,
						external: data['external'] === true,
						...(remote === '' ? {} : {remote}),
					},
				}
			: {}),
	};
}

function route(entry: Fields): Route {
	const optional = <Name extends string>(name: Name, value: unknown): Partial<Record<Name, string>> =>
		typeof value === 'string' ? ({[name]: value} as Record<Name, string>) : {};
	return {
		type: text(entry['type']),
		dst: prefix(text(entry['dst'])),
		// `via` is a gateway of another family. A pod VM does not support it, so such a route must be recognised.
		...optional('gateway', entry['gateway'] ?? fields(entry['via'])['host']),
		...optional('dev', entry['dev']),
		protocol: text(entry['protocol']),
		scope: text(entry['scope']),
		metric: number(entry['metric']),
		...optional('source', entry['prefsrc']),
	};
}

function neighbour(entry: Fields): Neighbour {
	return {address: text(entry['dst']), dev: text(entry['dev']), mac: text(entry['lladdr'])};
}

function prefix(dst: string): string {
	return dst === 'default' ? '0.0.0.0/0' : dst.includes('/') ? dst : `${dst}/32`;
}

function fields(value: unknown): Fields {
	return typeof value === 'object' && value !== null ? (value as Fields) : {};
}

function list(value: unknown): readonly unknown[] {
	return Array.isArray(value) ? value : [];
}

function text(value: unknown): string {
	return typeof value === 'string' ? value : '';
}

function number(value: unknown): number {
	return typeof value === 'number' ? value : 0;
}

/**
 * What `ip -j -d` prints, as typed values. Pure; knows iproute2's field names and nothing of what they are used for.
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
	/** A note that the kernel keeps with the device: of a tunnel, the sandbox that it was attached for. */
	readonly alias?: string;
	/** Of a VXLAN device only. */
	readonly vxlan?: Vxlan;
}

export interface Address {
	readonly family: string;
	readonly local: string;
	readonly prefixLength: number;
	readonly scope: string;
	/** A further address of a subnet that has one already. */
	readonly isSecondary: boolean;
}

export interface Vxlan {
	readonly vni: number;
	readonly port: number;
	readonly learning: boolean;
	/** Metadata mode: one device for all VNIs, as some CNIs have it. */
	readonly external: boolean;
	readonly remote?: string;
}

export interface Route {
	readonly type: string;
	/** A prefix; `0.0.0.0/0` is the default route. */
	readonly dst: string;
	readonly gateway?: string;
	/** Absent with several next hops. */
	readonly dev?: string;
	readonly protocol: string;
	/** iproute2's word: `global`, `link`, `host`. */
	readonly scope: string;
	readonly metric: number;
	/** The address that packets on this route are sent from, where it is fixed. */
	readonly source?: string;
}

export interface Neighbour {
	readonly address: string;
	readonly dev: string;
	readonly mac: string;
}

/**
 * The lines that `ip -d -j -batch -` is given; the answers come in this order. `show` of all links, since `-4` would
 * leave out those without IPv4.
 */
export const inspectionBatch = 'addr show\nroute show table main\nneigh show nud permanent\n';

export interface Inspection {
	readonly links: readonly Link[];
	/** IPv4, table main. */
	readonly routes: readonly Route[];
	/** Permanent ones. */
	readonly neighbours: readonly Neighbour[];
}

/** The answers to `inspectionBatch`. @throws 'internal' when they are not that */
export function parseInspection(output: string): Inspection {
	const [links, routes, neighbours] = answers(output, 3);
	return {links: links.map(link), routes: routes.map(route), neighbours: neighbours.map(neighbour)};
}

/** The answers to `route get` and `addr show`. */
export function parseRouteAndLinks(output: string): {readonly route: Route; readonly links: readonly Link[]} {
	const [[chosen], links] = answers(output, 2);
	if (chosen === undefined) {
		throw new AdaptorError({code: 'internal', what: 'ip printed no route'});
	}

	return {route: route(chosen), links: links.map(link)};
}

/** The answer to one `link show` or `addr show`. */
export function parseLinks(output: string): Link[] {
	return answers(output, 1)[0].map(link);
}

type Fields = Readonly<Record<string, unknown>>;
type Tuple<T, N extends number> = N extends 1 ? [T] : N extends 2 ? [T, T] : [T, T, T];

/** One JSON array a line; ip prints some that are empty over two lines, `[ ]` and a line feed. */
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
			what: 'ip printed something other than JSON',
			remedy: 'iproute2 5.0 or later is required.',
			cause: error,
		});
	}

	if (arrays.length !== count || !arrays.every(Array.isArray)) {
		throw new AdaptorError({
			code: 'internal',
			what: 'ip printed other answers than it was asked for',
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
		// `via` is a gateway of another family: nothing that a pod VM could be told, so it has to be seen that there is
		// one.
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

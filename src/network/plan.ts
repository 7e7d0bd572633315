/**
 * Converts the network of a pod namespace to the configuration for its VM. Pure. The code in the VM cannot be changed:
 * cloud-api-adaptor, pkg/podnetwork/podnode.go and pkg/util/netops, v0.10 to v0.22. It assigns the address to its end
 * of the tunnel, removes the resulting subnet route, adds the routes without gateway, then the others, then the
 * neighbours, and fails at the first error of the kernel. So the configuration must include the subnet route (protocol
 * kernel): without it, the gateway is unreachable. It does not support metrics, source addresses, `onlink` or a second
 * interface. See docs/adr/0025-pod-vm-generations.md.
 */
import {isIPv4} from 'node:net';
import {AdaptorError} from '../core/errors.ts';
import type {PodNeighbor, PodNetwork, PodRoute} from '../sandbox/ports.ts';
import type {Address, Inspection, Link, Route, Vxlan} from './inspection.ts';
import {networkOf, prefixContains} from '../core/ipv4.ts';
import {present} from '../core/present.ts';

/**
 * The end of the tunnel in the namespace of the pod. Upstream uses the same name, so that each can clean up after the
 * other.
 */
export const tunnelInterface = 'vxlan1';
/** Outer Ethernet, IPv4, UDP and VXLAN headers: RFC 7348, section 5. */
export const vxlanOverheadBytes = 50;
/** Route protocols that the VM supports: unix.RTPROT_* in netops.go. */
const protocols = new Set(['static', 'boot', 'dhcp', 'kernel']);
const defaultRoute = '0.0.0.0/0';

/** The address of the worker node towards the VMs. */
export interface WorkerAddress {
	/** The address with its prefix length. */
	readonly prefix: string;
	/** MTU of its interface. */
	readonly mtu: number;
}

export interface PodNetworkPlan {
	readonly network: Omit<PodNetwork, 'vxlanId' | 'index'>;
	/** Parts of the pod network that the VM cannot have, as phrases for the log. */
	readonly warnings: readonly string[];
}

export interface PlanOptions {
	readonly netnsPath: string;
	readonly worker: WorkerAddress;
	readonly vxlanPort: number;
	/** Subnets of the cluster. Each gets a route through the gateway of the pod, as in upstream. */
	readonly podSubnetCidrs: readonly string[];
	readonly externalNetViaPodVm: boolean;
}

/** @throws 'failed-precondition' for a namespace without a usable IPv4 interface */
export function planPodNetwork(
	{links, routes, neighbours}: Inspection,
	{netnsPath, worker, vxlanPort, podSubnetCidrs, externalNetViaPodVm}: PlanOptions,
): PodNetworkPlan {
	const warnings: string[] = [];
	const pods = links.filter(({isLoopback, name}) => !isLoopback && name !== tunnelInterface);
	const ordered = routes.toSorted((one, other) => one.metric - other.metric);
	const primary = primaryInterface(pods, ordered, netnsPath);
	const dev = primary.name;

	const others = pods.filter(link => link !== primary && ipv4(link).length > 0);
	if (others.length > 0) {
		warnings.push(`the pod VM only gets ${dev}, not ${others.map(({name}) => name).join(', ')}`);
	}

	const [address, ...more] = ipv4(primary);
	if (address === undefined) {
		throw unusable(
			`its interface ${dev} has no IPv4 address`,
			netnsPath,
			'IPv6-only pods cannot run as peer pods.',
		);
	}

	if (more.length > 0) {
		warnings.push(`the pod VM only gets the first IPv4 address of ${dev}`);
	}

	if (primary.addresses.some(({family, scope}) => family === 'inet6' && scope === 'global')) {
		warnings.push(`the pod VM does not get the IPv6 addresses of ${dev}`);
	}

	const podIp = `${address.local}/${address.prefixLength}`;
	const carried = carriedRoutes(ordered, dev);
	if (carried.length < ordered.filter(route => route.dev === dev || route.dev === undefined).length) {
		warnings.push('the pod VM does not support all routes of the pod');
	}

	const gateway = carried.find(({dst, gw}) => dst === defaultRoute && gw !== '')?.gw ?? '';
	const known = new Set(carried.map(({dst}) => dst));
	const subnets = [...new Set(podSubnetCidrs.map(networkOf))]
		.filter(cidr => !known.has(cidr))
		.map(dst => ({dst, gw: gateway, dev}));
	const podRoutes = [...carried, ...subnets];
	return {
		warnings,
		network: {
			netnsPath,
			podIp,
			podHwAddr: primary.mac,
			interface: dev,
			workerNodeIp: worker.prefix,
			tunnelType: 'vxlan',
			routes: inOrder([...podRoutes, ...gatewayRoutes(podRoutes, dev)]),
			neighbors: neighbours
				.filter(neighbour => neighbour.dev === dev && isIPv4(neighbour.address) && neighbour.mac !== '')
				.map(({address: ip, mac}): PodNeighbor => ({ip, hwAddr: mac, dev, state: 'permanent'})),
			mtu: Math.min(primary.mtu, worker.mtu - vxlanOverheadBytes),
			vxlanPort,
			// `true` requires a second network interface, which these VMs do not have.
			dedicated: false,
			externalNetViaPodVm,
		},
	};
}

/**
 * Whether an existing tunnel device can be reused. A learning device is refused: a host that guesses its VNI could
 * hijack it.
 */
export function isReusable({port, learning, external}: Vxlan, vxlanPort: number): boolean {
	return port === vxlanPort && !learning && !external;
}

/**
 * The address from which the kernel sends packets to the VMs.
 * @param hostInterface overrides the choice of the kernel
 */
export function workerAddress(
	links: readonly Link[],
	chosen: {readonly route: Route} | {readonly hostInterface: string},
): WorkerAddress {
	if ('hostInterface' in chosen) {
		const link = links.find(({name}) => name === chosen.hostInterface);
		const address = link === undefined ? undefined : ipv4(link)[0];
		if (link === undefined || address === undefined) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what:
					link === undefined
						? 'The interface in HOST_INTERFACE does not exist'
						: 'The interface in HOST_INTERFACE has no IPv4 address',
				where: {interface: chosen.hostInterface},
				remedy: `This node has ${links
					.filter(({isLoopback}) => !isLoopback)
					.map(({name}) => name)
					.join(', ')}. If HOST_INTERFACE is not set, the interface on the route to the VMs is used.`,
			});
		}

		return {prefix: `${address.local}/${address.prefixLength}`, mtu: link.mtu};
	}

	const {source, dev} = chosen.route;
	// Search by address, because the route to an address of this node uses `lo`.
	for (const link of links.toSorted((one, other) => Number(other.name === dev) - Number(one.name === dev))) {
		const address = link.addresses.find(({local}) => local === source);
		if (address !== undefined && !link.isLoopback) {
			return {prefix: `${address.local}/${address.prefixLength}`, mtu: link.mtu};
		}
	}

	throw new AdaptorError({
		code: 'failed-precondition',
		what: 'This node has no address towards the network of the pod VMs',
		where: {...present({interface: dev})},
		remedy: 'Give the node an address in the subnet of LIBVIRT_NET, or set HOST_INTERFACE.',
	});
}

/** The interface of the default route, otherwise the only interface. */
function primaryInterface(links: readonly Link[], routes: readonly Route[], netnsPath: string): Link {
	const named = routes.find(({dst, dev}) => dst === defaultRoute && dev !== undefined)?.dev;
	const withAddress = links.filter(link => ipv4(link).length > 0);
	const primary =
		named === undefined
			? withAddress.length === 1
				? withAddress[0]
				: undefined
			: links.find(({name}) => name === named);
	if (primary === undefined) {
		throw unusable(
			withAddress.length === 0
				? 'it has no interface with an IPv4 address'
				: 'it has several interfaces and no default route',
			netnsPath,
			withAddress.length === 0
				? 'Check the log of the CNI plugin. IPv6-only pods cannot run as peer pods.'
				: 'Add a default route: the pod VM gets the interface of the default route.',
		);
	}

	// The name is part of a tc script, where quotes and backslashes are special.
	if (!/^[A-Za-z0-9_.\-]{1,15}$/v.test(primary.name)) {
		throw unusable(
			'its interface has an unusual name',
			netnsPath,
			'Use only letters, digits and . _ - in its name.',
		);
	}

	return primary;
}

function unusable(reason: string, netns: string, remedy: string): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `The network namespace of the pod is unusable: ${reason}`,
		where: {netns},
		remedy,
	});
}

function ipv4({addresses}: Link): Address[] {
	return addresses.filter(({family, scope, isSecondary}) => family === 'inet' && scope !== 'host' && !isSecondary);
}

/** At most one route per destination: without metrics, the kernel of the VM refuses a second one. */
function carriedRoutes(ordered: readonly Route[], dev: string): PodRoute[] {
	const carried = new Map<string, PodRoute>();
	for (const route of ordered) {
		const {type, dst, gateway: gw = '', protocol, scope} = route;
		if (
			route.dev === dev &&
			type === 'unicast' &&
			protocols.has(protocol) &&
			(gw === '' || isIPv4(gw)) &&
			!carried.has(dst)
		) {
			// The scope `universe` of Go (`global` in iproute2) is the zero value, which Go omits.
			carried.set(dst, {dst, gw, dev, protocol, ...(scope === 'global' ? {} : {scope})});
		}
	}

	return [...carried.values()];
}

/**
 * If no route leads to a gateway, it is `onlink` in the pod. The VM gets a host route to that gateway instead.
 */
function gatewayRoutes(routes: readonly PodRoute[], dev: string): PodRoute[] {
	const direct = routes.filter(({gw}) => gw === '');
	const gateways = new Set(
		routes.map(({gw}) => gw).filter(gw => gw !== '' && !direct.some(({dst}) => prefixContains(dst, gw))),
	);
	return Array.from(gateways, gw => ({dst: `${gw}/32`, gw: '', dev, protocol: 'static', scope: 'link'}));
}

function inOrder(routes: readonly PodRoute[]): PodRoute[] {
	return [...routes.filter(({gw}) => gw === ''), ...routes.filter(({gw}) => gw !== '')];
}

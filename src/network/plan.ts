/**
 * From what is seen in a pod's network namespace to what its VM is told. Pure. The VM's side is fixed:
 * cloud-api-adaptor, pkg/podnetwork/podnode.go and pkg/util/netops, v0.10 to v0.22. It gives the address to its end of
 * the tunnel, removes the route to the subnet that this made, adds the routes without gateway and then the others, then
 * the neighbours, and gives up at the first that the kernel refuses. So the subnet's route, protocol kernel, has to be
 * among those that it is sent: without it the gateway cannot be reached. It knows no metric, no source address, no
 * `onlink`, and no second interface. See docs/adr/0025-pod-vm-generations.md.
 */
import {isIPv4} from 'node:net';
import {AdaptorError} from '../core/errors.ts';
import type {PodNeighbor, PodNetwork, PodRoute} from '../sandbox/ports.ts';
import type {Address, Inspection, Link, Route, Vxlan} from './inspection.ts';
import {networkOf, prefixContains} from '../core/ipv4.ts';

/**
 * The worker's end of the tunnel, in the pod's namespace. The name is upstream's, so that either can clean up after the
 * other.
 */
export const tunnelInterface = 'vxlan1';
/** Outer Ethernet, IPv4, UDP and VXLAN headers: RFC 7348, section 5. */
export const vxlanOverheadBytes = 50;
/** What a VM can be told, by name: unix.RTPROT_* in netops.go. */
const protocols = new Set(['static', 'boot', 'dhcp', 'kernel']);
const defaultRoute = '0.0.0.0/0';

/** The worker's own address towards the VMs. */
export interface WorkerAddress {
	/** With its prefix length. */
	readonly prefix: string;
	/** Of the interface that has it. */
	readonly mtu: number;
}

export interface PodNetworkPlan {
	readonly network: Omit<PodNetwork, 'vxlanId' | 'index'>;
	/** What of the namespace the VM cannot have, each a phrase for the log. */
	readonly warnings: readonly string[];
}

export interface PlanOptions {
	readonly netnsPath: string;
	readonly worker: WorkerAddress;
	readonly vxlanPort: number;
	/** The cluster's own subnets: a route of each through the pod's gateway, as upstream has it. */
	readonly podSubnetCidrs: readonly string[];
	readonly externalNetViaPodVm: boolean;
}

/** @throws 'failed-precondition' for a namespace without an IPv4 interface that traffic could be redirected from */
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
		warnings.push(`the pod VM gets ${dev} only, not ${others.map(({name}) => name).join(', ')}`);
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
		warnings.push(`the pod VM gets the first IPv4 address of ${dev} only`);
	}

	if (primary.addresses.some(({family, scope}) => family === 'inet6' && scope === 'global')) {
		warnings.push(`the pod VM has no IPv6, ${dev} does`);
	}

	const podIp = `${address.local}/${address.prefixLength}`;
	const carried = carriedRoutes(ordered, dev);
	if (carried.length < ordered.filter(route => route.dev === dev || route.dev === undefined).length) {
		warnings.push('not every route can be carried to the pod VM');
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
			// Would ask the VM for a second network interface, which VMs on libvirt do not have.
			dedicated: false,
			externalNetViaPodVm,
		},
	};
}

/**
 * A tunnel end that is there already: whether it can serve as ours. One that learns could be hijacked by whoever
 * guesses its VNI.
 */
export function isReusable({port, learning, external}: Vxlan, vxlanPort: number): boolean {
	return port === vxlanPort && !learning && !external;
}

/**
 * The worker's address on the way to the VMs: the one that the kernel would send from.
 * @param hostInterface the administrator's choice instead
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
						? 'HOST_INTERFACE names an interface that does not exist'
						: 'HOST_INTERFACE names an interface without an IPv4 address',
				where: {interface: chosen.hostInterface},
				remedy: `This node has ${links
					.filter(({isLoopback}) => !isLoopback)
					.map(({name}) => name)
					.join(', ')}. Left empty, the kernel's own choice towards the VMs' network is taken.`,
			});
		}

		return {prefix: `${address.local}/${address.prefixLength}`, mtu: link.mtu};
	}

	const {source, dev} = chosen.route;
	// By the address first: towards an address of this very node the interface is `lo`.
	for (const link of links.toSorted((one, other) => Number(other.name === dev) - Number(one.name === dev))) {
		const address = link.addresses.find(({local}) => local === source);
		if (address !== undefined && !link.isLoopback) {
			return {prefix: `${address.local}/${address.prefixLength}`, mtu: link.mtu};
		}
	}

	throw new AdaptorError({
		code: 'failed-precondition',
		what: "No address of this node leads to the pod VMs' network",
		where: {...(dev === undefined ? {} : {interface: dev})},
		remedy: 'Give the node an address in the subnet of LIBVIRT_NET, or set HOST_INTERFACE.',
	});
}

/** The one of the default route, else the only one there is. */
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
				? "Look at the CNI plugin's log; IPv6-only pods cannot run as peer pods."
				: 'The interface with the default route is the one that the pod VM gets.',
		);
	}

	// It goes into a tc script, where quotes and backslashes have a meaning.
	if (!/^[A-Za-z0-9_.\-]{1,15}$/v.test(primary.name)) {
		throw unusable('its interface has an unusual name', netnsPath, 'Letters, digits and . _ - are supported.');
	}

	return primary;
}

function unusable(reason: string, netns: string, remedy: string): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `The pod's network namespace cannot be used: ${reason}`,
		where: {netns},
		remedy,
	});
}

function ipv4({addresses}: Link): Address[] {
	return addresses.filter(({family, scope, isSecondary}) => family === 'inet' && scope !== 'host' && !isSecondary);
}

/** At most one for a destination: without metrics the VM's kernel would refuse the second. */
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
			// Go's `universe`, iproute2's `global`, is the zero value, which Go leaves out.
			carried.set(dst, {dst, gw, dev, protocol, ...(scope === 'global' ? {} : {scope})});
		}
	}

	return [...carried.values()];
}

/**
 * A gateway that no route without gateway leads to is `onlink` in the pod; the VM is told by a route to that one host.
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

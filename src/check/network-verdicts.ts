/** The pod VMs' network and this node's way into it, judged. Pure. */
import {finding, type Finding, type Problem} from './finding.ts';
import type {
	GuardObservation,
	MissingProtection,
	NetworkObservation,
	NetworkProtectionObservation,
	ProgramsObservation,
	RouteObservation,
	VxlanPortObservation,
} from './observations.ts';

export function networkFinding(
	network: string,
	{isActive, autostarts, forwardMode = 'isolated', subnet, hasSpanningTree}: NetworkObservation,
): Finding {
	return finding(
		`network ${network} (${forwardMode})${subnet === undefined ? ", whose addresses are not libvirt's to give" : `, subnet ${subnet}`}${isActive ? ', active' : ''}` +
			(hasSpanningTree ? "; spanning tree is on: a VM's first packets wait about 3 s" : ''),
		isActive
			? undefined
			: {
					status: 'failure',
					text: 'it is not active',
					remedy: `Run "virsh net-start ${network}" on the KVM host.`,
				},
		autostarts
			? undefined
			: {
					status: 'warning',
					text: 'it does not start with the host',
					remedy: `Run "virsh net-autostart ${network}" on the KVM host.`,
				},
	);
}

/** @param unfilteredVms names of VMs that run without a filter */
export function networkProtectionFinding(
	{filter, isolatedPorts}: NetworkProtectionObservation,
	unfilteredVms: readonly string[],
): Finding {
	const facts = [
		typeof filter === 'string'
			? `new VMs get the network filter ${filter}`
			: `no network filter (${filter.reason})`,
		isolatedPorts === true ? 'isolated ports' : `no isolated ports (${isolatedPorts.reason})`,
	];
	return finding(
		facts.join(', '),
		typeof filter === 'string'
			? undefined
			: problemOf(filter, "pod VMs can take each other's addresses and read their traffic"),
		// With a filter, it is a second line of defence only.
		isolatedPorts !== true && isolatedPorts.isRequired
			? problemOf(isolatedPorts, 'pod VMs reach each other on the bridge')
			: undefined,
		typeof filter === 'string' && unfilteredVms.length > 0
			? {
					status: 'warning',
					text: `${unfilteredVms.length} running without a filter: ${unfilteredVms.slice(0, mostNamed).join(', ')}${unfilteredVms.length > mostNamed ? ', …' : ''}`,
					remedy: 'They were started without one: delete their pods, so that new VMs are started.',
				}
			: undefined,
	);
}

const mostNamed = 5;

function problemOf({absent, isRequired, remedy}: MissingProtection, consequence: string): Problem | undefined {
	if (absent === 'off') {
		return undefined;
	}

	return {
		status: isRequired ? 'failure' : 'warning',
		text: isRequired ? 'it is required, so no pod VM starts' : consequence,
		remedy,
	};
}

const defaultRoute = '0.0.0.0/0';

export interface RouteWish {
	/** The subnet, or the address of the KVM host where the subnet is not known. */
	readonly towards: string;
	/** HOST_INTERFACE */
	readonly hostInterface?: string;
	/** TCP */
	readonly forwarderPort: number;
	/** UDP */
	readonly vxlanPort: number;
}

export function routeFinding(
	{dst, gateway, dev = 'several interfaces'}: RouteObservation,
	{towards, hostInterface, forwarderPort, vxlanPort}: RouteWish,
): Finding {
	const fact = `${towards} by ${dev}${gateway === undefined ? ', directly' : ` through ${gateway}`}`;
	return finding(
		fact,
		dst === defaultRoute
			? {
					status: 'warning',
					text: 'that is the default route, this node does not know that network',
					remedy: `If pod VMs cannot be reached that way over TCP ${forwarderPort} and UDP ${vxlanPort}: put this node on the network of LIBVIRT_NET, or add a route to ${towards} through the KVM host ("ip route add ${towards} via …").`,
				}
			: undefined,
		hostInterface === undefined || hostInterface === dev
			? undefined
			: {
					status: 'warning',
					text: `HOST_INTERFACE is ${hostInterface}`,
					remedy: `Set HOST_INTERFACE to ${dev}, or leave it out: pod VMs send their tunnels to the address of that interface.`,
				},
	);
}

/**
 * Where libvirt does not give the VMs their addresses, and the URI names the KVM host by something else than an IPv4
 * address.
 */
export function unknownSubnetFinding(network: string, hostInterface: string | undefined): Finding {
	const fact = `not known where the VMs of network ${network} are: libvirt does not manage its addresses`;
	return hostInterface === undefined
		? {
				status: 'failure',
				text: `${fact}, and LIBVIRT_URI names the KVM host by no IPv4 address`,
				remedy: "Set HOST_INTERFACE to this node's interface towards the VMs.",
			}
		: {status: 'skipped', text: `${fact}; tunnels begin at ${hostInterface}`};
}

export function programsFinding({versions}: ProgramsObservation): Finding {
	const entries = Object.entries(versions);
	const found = entries
		.filter(([, version]) => version !== null)
		.map(([name, version]) => `${name} ${String(version)}`);
	const missing = entries.filter(([, version]) => version === null).map(([name]) => name);
	return finding(
		found.join(', ') || 'none found',
		missing.length === 0
			? undefined
			: {
					status: 'failure',
					text: `${missing.join(', ')} missing`,
					remedy: "Install iproute2 (ip, tc), nftables (nft) and util-linux (nsenter) on this node, or in the adaptor's image.",
				},
	);
}

export function vxlanPortFinding(port: number, {isFree, sharing, programs}: VxlanPortObservation): Finding {
	const remedy =
		'Set VXLAN_PORT to a free UDP port, for example 9000, which firewalls between node and KVM host let through.';
	if (!isFree) {
		const users =
			sharing.length > 0
				? `the interface ${sharing.join(', ')}, likely of the cluster's own network`
				: programs.length > 0
					? programs.join(', ')
					: 'something that cannot be seen from here';
		return {status: 'failure', text: `UDP ${port} is taken by ${users}`, remedy};
	}

	return finding(
		`UDP ${port} can carry the tunnels`,
		sharing.length === 0
			? undefined
			: {status: 'warning', text: `the interface ${sharing.join(', ')} uses it too`, remedy},
	);
}

export function guardFinding({bound, unbound, dropped}: GuardObservation): Finding {
	const refused = dropped === 0 ? '' : `; ${dropped} ${dropped === 1 ? 'packet' : 'packets'} of others refused`;
	return finding(
		`tunnels accept packets of their own VM only, ${bound} at present${refused}`,
		unbound === 0
			? undefined
			: {
					status: 'warning',
					text: `${unbound} ${unbound === 1 ? 'VM' : 'VMs'} attached by an earlier version can still send into the others' tunnels`,
					remedy: 'The daemon binds each tunnel when it resumes its sandbox. If this does not pass, the daemon of an earlier version is running: update it.',
				},
	);
}

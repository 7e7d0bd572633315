/** Turns observations of the network of the pod VMs, and of the route to it, into findings. Pure. */
import {echoed} from '../core/errors.ts';
import {finding, type Finding, type Problem} from './finding.ts';
import type {
	GuardObservation,
	MissingProtection,
	NetworkObservation,
	NetworkProtectionObservation,
	PortUser,
	ProgramsObservation,
	RouteObservation,
	VxlanPortObservation,
} from './observations.ts';

export function networkFinding(
	network: string,
	{isActive, autostarts, forwardMode = 'isolated', subnet, hasSpanningTree}: NetworkObservation,
): Finding {
	return finding(
		`network ${network} (${forwardMode})${subnet === undefined ? ', addresses not managed by libvirt' : `, subnet ${subnet}`}${isActive ? ', active' : ''}` +
			(hasSpanningTree ? '; spanning tree delays the first packets of a VM by about 3 s' : ''),
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
			: problemOf(filter, 'pod VMs can use the addresses of other pod VMs and read their traffic'),
		// With a filter, isolated ports are only a second line of defence.
		isolatedPorts !== true && isolatedPorts.isRequired
			? problemOf(isolatedPorts, 'pod VMs can reach each other on the bridge')
			: undefined,
		typeof filter === 'string' && unfilteredVms.length > 0
			? {
					status: 'warning',
					text: `${unfilteredVms.length} pod VMs run without a filter: ${unfilteredVms.slice(0, mostNamed).join(', ')}${unfilteredVms.length > mostNamed ? ', …' : ''}`,
					remedy: 'Delete their pods: new VMs get the filter.',
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
	/** The subnet, or the address of the KVM host if the subnet is unknown. */
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
	const fact = `${towards} through ${dev}${gateway === undefined ? ', directly' : ` and gateway ${gateway}`}`;
	return finding(
		fact,
		dst === defaultRoute
			? {
					status: 'warning',
					text: 'the packets use the default route: this node has no specific route to that network',
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
 * For a network whose addresses libvirt does not manage, if LIBVIRT_URI does not contain the IPv4 address of the KVM
 * host.
 */
export function unknownSubnetFinding(network: string, hostInterface: string | undefined): Finding {
	const fact = `the subnet of network ${network} is unknown: libvirt does not manage its addresses`;
	return hostInterface === undefined
		? {
				status: 'failure',
				text: `${fact}, and LIBVIRT_URI does not contain an IPv4 address`,
				remedy: 'Set HOST_INTERFACE to the interface of this node towards the VMs.',
			}
		: {status: 'skipped', text: `${fact}; tunnels use ${hostInterface}`};
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
					remedy: 'Install iproute2 (ip, tc), nftables (nft) and util-linux (nsenter) on this node, or in the image of the adaptor.',
				},
	);
}

export function vxlanPortFinding(port: number, {isFree, sharing, programs, freePort}: VxlanPortObservation): Finding {
	const remedy = `Set VXLAN_PORT to a free UDP port, for example ${freePort}. Firewalls between this node and the KVM host must allow it.`;
	if (!isFree) {
		const users =
			sharing.length > 0
				? `the interface ${sharing.join(', ')}, probably of the cluster network`
				: programs.length > 0
					? programs.map(portUser).join(', ')
					: 'an unknown user outside this namespace';
		return {status: 'failure', text: `UDP ${port} is in use by ${users}`, remedy};
	}

	return finding(
		`UDP ${port} is usable for tunnels`,
		sharing.length === 0
			? undefined
			: {status: 'warning', text: `the interface ${sharing.join(', ')} uses it too`, remedy},
	);
}

function portUser({name, pid, commandLine}: PortUser): string {
	return `${name} (pid ${pid}${commandLine === undefined ? '' : `, ${JSON.stringify(echoed(commandLine))}`})`;
}

export function guardFinding({bound, unbound, dropped}: GuardObservation): Finding {
	const refused = dropped === 0 ? '' : `; ${dropped} foreign ${dropped === 1 ? 'packet' : 'packets'} dropped`;
	return finding(
		`${bound} ${bound === 1 ? 'tunnel accepts' : 'tunnels accept'} only packets of their own VM${refused}`,
		unbound === 0
			? undefined
			: {
					status: 'warning',
					text: `${unbound} ${unbound === 1 ? 'VM' : 'VMs'} attached by an earlier version can still send into other tunnels`,
					remedy: 'The daemon binds each tunnel when it resumes its sandbox. If this warning stays, the running daemon is an earlier version: update it.',
				},
	);
}

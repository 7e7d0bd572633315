/**
 * Protection of the network of the KVM host against pod VMs that impersonate others: a network filter, and an isolated
 * port of the bridge. Reads from libvirt which of them the network supports. Decides nothing about a start:
 * `HostRequirements` does.
 */
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import {isLibvirtError, libvirtCode, LibvirtError} from '../libvirt/wire/errors.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {child, children, readXml, type XmlElement} from '../libvirt/xml.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {bootFilterOf, ownFilterName, ownFilterXml} from './network-filter.ts';

export interface ProtectionWish {
	/** LIBVIRT_NET */
	readonly network: string;
	/** LIBVIRT_NET_FILTER: `auto`, `off`, or the name of a filter that is required. */
	readonly netFilter: string;
	/** LIBVIRT_NET_ISOLATION: `on` requires it. */
	readonly netIsolation: 'auto' | 'on' | 'off';
}

export interface NetworkFilter {
	readonly name: string;
	/** The filter that is used during boot, until the address is verified. Absent if it is the same filter. */
	readonly bootName?: string;
	/** The filters (`name`, `bootName`) that libvirt does not have yet and that this program may define. */
	readonly missing: readonly string[];
	/** Address of the DHCP server of the network, if libvirt runs it. */
	readonly dhcpServer?: string;
}

/** `reason` is a phrase without a full stop, `remedy` has sentences. */
export interface Absence {
	readonly absent: 'off' | 'unavailable';
	readonly reason: string;
	readonly remedy: string;
	/** libvirt returned an error that may not occur the next time. */
	readonly mayChange?: true;
}

export interface NetworkProtection {
	readonly filter: NetworkFilter | Absence;
	readonly isolation: 'on' | Absence;
}

export function isAbsent(part: NetworkProtection['filter' | 'isolation']): part is Absence {
	return typeof part === 'object' && 'absent' in part;
}

/** What the network supports for a port. */
export interface PortAbilities {
	/** The reason why neither filter nor isolation is possible; absent if both are possible. */
	readonly unfit?: string;
	readonly dhcpServer?: string;
}

/**
 * Modes in which libvirt creates the bridge; an isolated network has no mode (libvirt, docs/formatnetwork,
 * "Connectivity").
 */
const modesOfOwnBridge: ReadonlySet<string> = new Set(['none', 'nat', 'route', 'open']);

/** @param description answer of NETWORK_GET_XML_DESC */
export function portAbilities(description: XmlElement): PortAbilities {
	const forward = child(description, 'forward');
	const mode = forward === undefined ? 'none' : (forward.attributes['mode'] ?? 'nat');
	// Of the network, or of its default port group.
	const groups = children(description, 'portgroup').filter(({attributes}) => attributes['default'] === 'yes');
	const virtualPort = [description, ...groups]
		.map(element => child(element, 'virtualport')?.attributes['type'])
		.find(type => type !== undefined);
	if (virtualPort !== undefined) {
		return {unfit: `its ports are of type ${virtualPort}, on which filters of libvirt have no effect`};
	}

	if (mode === 'hostdev') {
		return {unfit: 'it gives VMs a network device of the host (forward mode "hostdev")'};
	}

	if (!modesOfOwnBridge.has(mode) && child(description, 'bridge') === undefined) {
		return {
			unfit: `it connects VMs with macvtap (forward mode "${mode}"), which supports neither filters nor isolation`,
		};
	}

	const dhcpServer = modesOfOwnBridge.has(mode)
		? children(description, 'ip').find(
				ip => (ip.attributes['family'] ?? 'ipv4') === 'ipv4' && child(ip, 'dhcp') !== undefined,
			)?.attributes['address']
		: undefined;
	return dhcpServer === undefined ? {} : {dhcpServer};
}

const off = (setting: string): Absence => ({absent: 'off', reason: `${setting}=off`, remedy: `Set ${setting}=auto.`});
const networkRemedy =
	'Use a network with a Linux bridge (forward mode nat, route or open, or bridge with a <bridge name>), or filter the traffic with the means of that network.';
/**
 * The first libvirt with `<port isolated='yes'/>` (libvirt, docs/formatdomain), in its own numbering. Older versions
 * ignore it.
 */
const firstVersionWithIsolation = 6_001_000n;

/**
 * Changes nothing.
 * @throws LibvirtError 'not-found' if there is no such network; as `LibvirtSession.call`
 */
export async function readNetworkProtection(
	session: Pick<LibvirtCalls, 'call'>,
	{network, netFilter, netIsolation}: ProtectionWish,
	signal: AbortSignal,
): Promise<NetworkProtection> {
	if (netFilter === 'off' && netIsolation === 'off') {
		return {filter: off('LIBVIRT_NET_FILTER'), isolation: off('LIBVIRT_NET_ISOLATION')};
	}

	const {net} = await session.call(procedures.networkLookupByName, {name: network}, signal);
	const [{xml}, {libVer}] = await Promise.all([
		session.call(procedures.networkGetXmlDesc, {net, flags: 0}, signal),
		session.call(procedures.connectGetLibVersion, undefined, signal),
	]);
	const {unfit, dhcpServer} = portAbilities(readXml(xml));
	const ofNetwork: Absence | undefined =
		unfit === undefined
			? undefined
			: {absent: 'unavailable', reason: `network ${network}: ${unfit}`, remedy: networkRemedy};
	const tooOld: Absence | undefined =
		libVer >= firstVersionWithIsolation
			? undefined
			: {
					absent: 'unavailable',
					reason: 'its libvirt is older than 6.1',
					remedy: 'Update libvirt on the KVM host.',
				};
	return {
		filter:
			netFilter === 'off'
				? off('LIBVIRT_NET_FILTER')
				: (ofNetwork ??
					(await readFilter(
						session,
						netFilter === 'auto'
							? ownFilterName({phase: 'bound', knowsDhcpServer: dhcpServer !== undefined})
							: netFilter,
						dhcpServer,
						signal,
					))),
		isolation: netIsolation === 'off' ? off('LIBVIRT_NET_ISOLATION') : (ofNetwork ?? tooOld ?? 'on'),
	};
}

async function readFilter(
	session: Pick<LibvirtCalls, 'call'>,
	name: string,
	dhcpServer: string | undefined,
	signal: AbortSignal,
): Promise<NetworkFilter | Absence> {
	const bootName = bootFilterOf(name);
	try {
		const missing = (
			await Promise.all(
				(bootName === undefined ? [name] : [name, bootName]).map(async each =>
					(await isDefined(session, each, signal)) ? [] : [each],
				),
			)
		).flat();
		return missing.some(each => ownFilterXml(each) === undefined)
			? {
					absent: 'unavailable',
					mayChange: true,
					reason: `it has no network filter ${name}`,
					remedy: 'See "virsh nwfilter-list" on the KVM host. Define the filter there, or set LIBVIRT_NET_FILTER=auto.',
				}
			: {
					name,
					missing,
					...present({bootName, dhcpServer}),
				};
	} catch (error) {
		return absenceOf(error, 'its libvirt does not support network filters');
	}
}

async function isDefined(session: Pick<LibvirtCalls, 'call'>, name: string, signal: AbortSignal): Promise<boolean> {
	try {
		await session.call(procedures.nwfilterLookupByName, {name}, signal);
		return true;
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noNwfilter)) {
			return false;
		}

		throw error;
	}
}

/**
 * Defines the missing filters of this program. If libvirt refuses one, the VM has no filter.
 * @throws as `LibvirtSession.call`, never LibvirtError
 */
export async function defineFilter(
	session: Pick<LibvirtCalls, 'call'>,
	protection: NetworkProtection,
	signal: AbortSignal,
): Promise<NetworkProtection> {
	const {filter} = protection;
	if (isAbsent(filter)) {
		return protection;
	}

	try {
		// Their UUIDs are fixed, so two daemons that define one at the same time define the same.
		await Promise.all(
			filter.missing.map(async name =>
				session.call(procedures.nwfilterDefineXml, {xml: ownFilterXml(name) ?? ''}, signal),
			),
		);
		return {...protection, filter: {...filter, missing: []}};
	} catch (error) {
		return {...protection, filter: absenceOf(error, `the network filter ${filter.name} could not be defined`)};
	}
}

function absenceOf(error: unknown, what: string): Absence {
	if (!(error instanceof LibvirtError)) {
		throw error;
	}

	return {
		absent: 'unavailable',
		reason: `${what} (${error.libvirtMessage.replaceAll(/\s+/gv, ' ')})`,
		remedy: "On the KVM host, install libvirt's network filter driver (libvirt-daemon-driver-nwfilter, virtnwfilterd) with ebtables and restart libvirt; the user in LIBVIRT_URI must be allowed to define filters.",
		...(error.libvirtCode === libvirtCode.noSupport ? {} : {mayChange: true}),
	};
}

/** @throws AdaptorError 'failed-precondition' if a protection that the settings require is not available */
export function requireProtection(
	{netFilter, netIsolation}: ProtectionWish,
	{filter, isolation}: NetworkProtection,
): void {
	for (const [part, setting, isRequired] of [
		[filter, 'LIBVIRT_NET_FILTER', netFilter !== 'auto'],
		[isolation, 'LIBVIRT_NET_ISOLATION', netIsolation === 'on'],
	] as const) {
		if (isRequired && isAbsent(part) && part.absent === 'unavailable') {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: `The KVM host cannot protect the network as ${setting} requires: ${part.reason}`,
				remedy: `${part.remedy} With ${setting}=auto VMs start without it.`,
			});
		}
	}
}

/** virErrorDomain: VIR_FROM_NWFILTER, VIR_FROM_FIREWALL (libvirt, include/libvirt/virterror.h). */
const filterDomains: ReadonlySet<number> = new Set([33, 59]);

/** The error of a failed start: with a workaround if the filter failed. */
export function causeOfFilterFailure(error: unknown, filter: string): unknown {
	return error instanceof LibvirtError && filterDomains.has(error.libvirtDomain)
		? new AdaptorError({
				code: 'failed-precondition',
				what: `The KVM host could not apply the network filter: ${error.libvirtMessage}`,
				where: {filter},
				remedy: 'Install ebtables and iptables on the KVM host (libvirt calls them), and look at "virsh nwfilter-dumpxml" there. With LIBVIRT_NET_FILTER=off pod VMs start without a filter, and can impersonate each other.',
				cause: error,
			})
		: error;
}

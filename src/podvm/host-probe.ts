/**
 * Reads from libvirt what the checks need to know about the KVM host and the objects of pod VMs. Changes nothing and
 * judges nothing: `check/` does. A missing object is an error with its remedy.
 */
import type {
	GuestObservation,
	LibvirtObservation,
	MemoryObservation,
	NetworkObservation,
	NetworkProtectionObservation,
	PodVmsObservation,
	PoolObservation,
	SecureExecutionObservation,
	VolumeObservation,
} from '../check/observations.ts';
import {networkOf, prefixLengthOf} from '../core/ipv4.ts';
import {isLibvirtError, libvirtCode, LibvirtError} from '../libvirt/wire/errors.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import type {LibvirtSession} from '../libvirt/session.ts';
import {child, readXml, type XmlElement} from '../libvirt/xml.ts';
import {UnfitImageError} from '../vm-image/unfit-image.ts';
import {judgeVolume} from './base-images.ts';
import type {HostCapabilities} from './host-capabilities.ts';
import {silentLogger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {checkCpuset} from './host-requirements.ts';
import {isAbsent, readNetworkProtection, type ProtectionWish} from './network-protection.ts';
import type {PodsDir} from './metadata.ts';
import {listDomains, ownership, readOwnDomains, type OwnDomain, type Owner} from './own-domains.ts';
import {VmSlots} from './vm-slots.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {readBaseVolume} from './volumes.ts';

type Calls = Pick<LibvirtSession, 'call'>;

const roundTrips = 5;

/** Connects if necessary. */
export async function observeLibvirt(
	session: Calls & Pick<LibvirtSession, 'connect'>,
	signal: AbortSignal,
): Promise<LibvirtObservation> {
	const {driver, libvirtVersion, hostname, transport} = await session.connect(signal);
	const times: number[] = [];
	while (times.length < roundTrips) {
		const startedAt = performance.now();
		await session.call(procedures.connectGetLibVersion, undefined, signal);
		times.push(performance.now() - startedAt);
	}

	return {
		driver,
		version: libvirtVersion,
		hostname,
		transport,
		roundTripMs: times.sort((a, b) => a - b)[Math.floor(roundTrips / 2)] ?? 0,
	};
}

/** @throws 'failed-precondition' for a host that runs no s390x guests at all, or lacks CPUs of `cpuset` */
export async function observeGuests(
	capabilities: HostCapabilities,
	cpuset: string | undefined,
	signal: AbortSignal,
): Promise<GuestObservation> {
	const support = await capabilities.support(signal);
	checkCpuset(cpuset, support.cpus);
	return support;
}

/** @throws as `observeGuests` */
export async function observeSecureExecution(
	capabilities: HostCapabilities,
	signal: AbortSignal,
): Promise<SecureExecutionObservation> {
	try {
		return await capabilities.secureExecution(signal);
	} catch (error) {
		// An error here only means "not supported". If confidential VMs are requested, each start fails with the same
		// reason.
		if (!(error instanceof LibvirtError)) {
			throw error;
		}

		return {
			supported: false,
			reason: `its libvirt cannot tell (${error.libvirtMessage.replaceAll(/\s+/gv, ' ')})`,
			remedy: 'Update libvirt on the KVM host, and check the driver in LIBVIRT_URI and what its user may do.',
		};
	}
}

/** VIR_NODE_MEMORY_STATS_ALL_CELLS (libvirt-host.h). */
const allCells = -1;

export async function observeMemory(session: Calls, signal: AbortSignal): Promise<MemoryObservation> {
	try {
		// The first call returns the number of parameters.
		const {nparams} = await session.call(
			procedures.nodeGetMemoryStats,
			{nparams: 0, cellNum: allCells, flags: 0},
			signal,
		);
		const {params} = await session.call(
			procedures.nodeGetMemoryStats,
			{nparams, cellNum: allCells, flags: 0},
			signal,
		);
		const bytesOf = (...fields: readonly string[]): bigint =>
			params.filter(({field}) => fields.includes(field)).reduce((sum, {value}) => sum + value * 1024n, 0n);
		return {totalBytes: bytesOf('total'), availableBytes: bytesOf('free', 'buffers', 'cached')};
	} catch (error) {
		if (!isLibvirtError(error, libvirtCode.noSupport)) {
			throw error;
		}

		// Without the memory of caches.
		const [{memory}, {freeMem}] = await Promise.all([
			session.call(procedures.nodeGetInfo, undefined, signal),
			session.call(procedures.nodeGetFreeMemory, undefined, signal),
		]);
		return {totalBytes: memory * 1024n, availableBytes: freeMem};
	}
}

/** The number of running VMs of this cluster and node. Their UUIDs suffice, so no definition is read. */
export async function countRunningVms(
	session: Calls,
	cluster: string,
	node: string,
	signal: AbortSignal,
): Promise<number> {
	const slots = new VmSlots(cluster, node);
	const {domains} = await session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal);
	return domains.filter(({id, uuid}) => id !== -1 && slots.numberOf(uuid) !== undefined).length;
}

/**
 * @param podsDir of the daemon that owns the VMs; VMs of earlier versions, which do not name their owner, count as its
 * own
 */
export async function observePodVms(
	session: Calls,
	owner: Owner,
	podsDir: PodsDir,
	signal: AbortSignal,
): Promise<PodVmsObservation> {
	// The daemon warns about domains with untrusted metadata.
	const own = await ownDomains(session, owner, signal);
	return {
		count: own.length,
		foreign: own
			.flatMap(({domain: {name}, metadata}) => {
				const {ownership: whose, podsDir: other = ''} = ownership(podsDir, metadata);
				return whose === 'foreign' ? [{name, podsDir: other}] : [];
			})
			.sort((a, b) => (a.name < b.name ? -1 : 1)),
	};
}

/** Names of running VMs without a network filter, for example those of earlier versions. */
export async function unfilteredVms(session: Calls, owner: Owner, signal: AbortSignal): Promise<readonly string[]> {
	return (await ownDomains(session, owner, signal))
		.filter(({domain: {id}, netFilter}) => id !== -1 && netFilter === undefined)
		.map(({domain: {name}}) => name)
		.sort();
}

async function ownDomains(session: Calls, owner: Owner, signal: AbortSignal): Promise<readonly OwnDomain[]> {
	return readOwnDomains(
		session,
		new VmSlots(owner.cluster, owner.node),
		owner,
		await listDomains(session, signal),
		silentLogger,
		signal,
	);
}

/** @throws LibvirtError 'not-found' */
export async function observeNetworkProtection(
	session: Calls,
	wish: ProtectionWish,
	signal: AbortSignal,
): Promise<NetworkProtectionObservation> {
	const {filter, isolation} = await readNetworkProtection(session, wish, signal);
	const required = {filter: wish.netFilter !== 'auto', isolation: wish.netIsolation === 'on'};
	return {
		filter: isAbsent(filter) ? {...filter, isRequired: required.filter} : filter.name,
		isolatedPorts: isAbsent(isolation) ? {...isolation, isRequired: required.isolation} : true,
	};
}

/** @throws LibvirtError 'not-found' */
export async function observePool(session: Calls, name: string, signal: AbortSignal): Promise<PoolObservation> {
	const {pool} = await session.call(procedures.storagePoolLookupByName, {name}, signal);
	const [{active}, {autostart}, {xml}, {available}] = await Promise.all([
		session.call(procedures.storagePoolIsActive, {pool}, signal),
		session.call(procedures.storagePoolGetAutostart, {pool}, signal),
		session.call(procedures.storagePoolGetXmlDesc, {pool, flags: 0}, signal),
		session.call(procedures.storagePoolGetInfo, {pool}, signal),
	]);
	const description = readXml(xml);
	const path = child(description, 'target', 'path')?.text;
	return {
		type: description.attributes['type'] ?? 'unknown',
		isActive: active === 1,
		autostarts: autostart === 1,
		availableBytes: active === 1 ? available : 0n,
		...present({path}),
	};
}

/**
 * Observes the volume that VMs start from: if the name is an alias, the version that it points to.
 * @throws as `readBaseVolume`
 */
export async function observeBaseVolume(
	session: Calls & Pick<LibvirtSession, 'download'>,
	poolName: string,
	name: string,
	signal: AbortSignal,
): Promise<VolumeObservation> {
	const {name: version, format, capacity} = await readBaseVolume(session, poolName, name, signal);
	const vol = volumeOf(poolName, version);
	const {allocation} = await session.call(procedures.storageVolGetInfo, {vol}, signal);
	return {
		declaredFormat: format,
		capacityBytes: capacity,
		allocatedBytes: allocation,
		content: await observeContent(session, vol, signal),
		...(version === name ? {} : {version}),
	};
}

async function observeContent(
	session: Pick<LibvirtSession, 'download'>,
	vol: ReturnType<typeof volumeOf>,
	signal: AbortSignal,
): Promise<VolumeObservation['content']> {
	try {
		return await judgeVolume(session, vol, signal);
	} catch (error) {
		if (error instanceof UnfitImageError) {
			return {unfit: error.why, remedy: error.remedy};
		}

		if (error instanceof LibvirtError) {
			return {unreadable: error.libvirtMessage};
		}

		throw error;
	}
}

/** @throws LibvirtError 'not-found' */
export async function observeNetwork(session: Calls, name: string, signal: AbortSignal): Promise<NetworkObservation> {
	const {net} = await session.call(procedures.networkLookupByName, {name}, signal);
	const [{active}, {autostart}, {xml}] = await Promise.all([
		session.call(procedures.networkIsActive, {net}, signal),
		session.call(procedures.networkGetAutostart, {net}, signal),
		session.call(procedures.networkGetXmlDesc, {net, flags: 0}, signal),
	]);
	const description = readXml(xml);
	const forward = child(description, 'forward');
	const bridge = child(description, 'bridge');
	return {
		isActive: active === 1,
		autostarts: autostart === 1,
		// libvirt, docs/formatnetwork.rst: without a mode, the element means `nat`.
		...(forward === undefined ? {} : {forwardMode: forward.attributes['mode'] ?? 'nat'}),
		...addressing(
			description.children.find(
				({name: element, attributes}) => element === 'ip' && (attributes['family'] ?? 'ipv4') === 'ipv4',
			),
		),
		// libvirt writes it for bridges that it creates.
		hasSpanningTree: bridge?.attributes['stp'] === 'on',
	};
}

function addressing(ip: XmlElement | undefined): Pick<NetworkObservation, 'subnet' | 'vmAddress'> {
	const {address, prefix, netmask} = ip?.attributes ?? {};
	if (address === undefined) {
		return {};
	}

	// Without prefix and netmask, libvirt uses the class of the address; only the address itself is certain then.
	const length = prefix ?? (netmask === undefined ? 32 : prefixLengthOf(netmask));
	const first = child(ip, 'dhcp', 'range')?.attributes['start'];
	return {subnet: networkOf(`${address}/${length}`), vmAddress: first ?? address};
}

/**
 * The domains of this cluster and node among all domains of a KVM host. A domain is ours if its UUID is that of one of
 * our slots *and* its metadata says so. All other domains are never changed, and the daemon never waits for them.
 */
import {AdaptorError} from '../core/errors.ts';
import {isLibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type Domain} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import type {PodVmRecord} from '../sandbox/ports.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {readMetadata, type PodsDir, type PodVmMetadata} from './metadata.ts';
import type {VmSlots} from './vm-slots.ts';
import {cidataVolumeName, rootVolumeName} from './volumes.ts';
import {child, readXml} from '../libvirt/xml.ts';

export interface OwnDomain {
	readonly domain: Domain;
	/** 0 to 255. */
	readonly slot: number;
	readonly metadata: PodVmMetadata;
	/** Name of the network filter of its interface; absent without one. */
	readonly netFilter?: string;
}

export interface Owner {
	readonly cluster: string;
	readonly node: string;
}

/**
 * Which daemon of this node owns the VM.
 * @param own absent if the daemon does not know its own
 */
export function ownership(
	own: PodsDir | undefined,
	{podsDir}: PodVmMetadata,
): Pick<PodVmRecord, 'ownership' | 'podsDir'> {
	if (own === undefined || podsDir === undefined) {
		return {ownership: 'unmarked'};
	}

	return podsDir.fingerprint === own.fingerprint
		? {ownership: 'ours'}
		: {ownership: 'foreign', podsDir: podsDir.path};
}

/** Whether the domain is still the same one: another VM may have got its UUID in the meantime. */
export async function isStillThere(
	session: Pick<LibvirtCalls, 'call'>,
	{name, uuid}: Domain,
	nonce: string,
	signal: AbortSignal,
): Promise<boolean> {
	try {
		const {xml} = await session.call(procedures.domainGetXmlDesc, {dom: {name, uuid, id: -1}, flags: 0}, signal);
		return readMetadata(readXml(xml))?.nonce === nonce;
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noDomain)) {
			return false;
		}

		throw error;
	}
}

export async function listDomains(
	session: Pick<LibvirtCalls, 'call'>,
	signal: AbortSignal,
): Promise<readonly Domain[]> {
	return (await session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal)).domains;
}

/** Reads the XML of the domains with our UUIDs, with one call each. */
export async function readOwnDomains(
	session: Pick<LibvirtCalls, 'call'>,
	slots: VmSlots,
	owner: Owner,
	domains: readonly Domain[],
	log: Logger,
	signal: AbortSignal,
): Promise<readonly OwnDomain[]> {
	const own = await Promise.all(
		domains.map(async domain => {
			const slot = slots.numberOf(domain.uuid);
			const read = slot === undefined ? undefined : await readOwnDomain(session, domain, owner, log, signal);
			return slot === undefined || read === undefined ? [] : [{domain, slot, ...read}];
		}),
	);
	return own.flat();
}

/** Undefined if the domain no longer exists, belongs to another owner, or cannot be parsed. */
async function readOwnDomain(
	session: Pick<LibvirtCalls, 'call'>,
	domain: Domain,
	{cluster, node}: Owner,
	log: Logger,
	signal: AbortSignal,
): Promise<Pick<OwnDomain, 'metadata' | 'netFilter'> | undefined> {
	try {
		const {xml} = await session.call(procedures.domainGetXmlDesc, {dom: domain, flags: 0}, signal);
		const description = readXml(xml);
		const metadata = readMetadata(description);
		if (metadata === undefined || metadata.cluster !== cluster || metadata.node !== node) {
			return undefined;
		}

		// Edited metadata must not cause the deletion of other volumes.
		if (
			metadata.rootVolume !== rootVolumeName(domain.name) ||
			metadata.cidataVolume !== cidataVolumeName(domain.name)
		) {
			throw new AdaptorError({
				code: 'data-loss',
				what: 'The metadata of a domain names volumes that are not its own',
				where: {domain: domain.name},
			});
		}

		const netFilter = child(description, 'devices', 'interface', 'filterref')?.attributes['filter'];
		return {metadata, ...present({netFilter})};
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noDomain)) {
			return undefined;
		}

		if (error instanceof AdaptorError && error.code === 'data-loss') {
			log.warn({instanceName: domain.name, err: error}, 'not changing a domain: its metadata cannot be trusted');
			return undefined;
		}

		throw error;
	}
}

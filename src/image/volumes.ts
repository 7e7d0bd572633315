/**
 * The volumes of a pool and their users: the disks of all VMs, and the overlays of volumes. Always read from libvirt,
 * never remembered.
 */
import {AdaptorError} from '../core/errors.ts';
import {isLibvirtError, LibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type Domain, type StoragePool} from '../libvirt/wire/procedures.ts';
import {change} from '../libvirt/change.ts';
import type {LibvirtSession} from '../libvirt/session.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {child, children, readXml, type XmlElement} from '../libvirt/xml.ts';
import {pointsToVersion} from '../vm-image/version-name.ts';

/** A part of `LibvirtSession`, which fits without an adapter. */
export type LibvirtStorage = Pick<LibvirtSession, 'call' | 'upload' | 'download'>;

export interface Volume {
	readonly name: string;
	/** On the host. */
	readonly path: string;
	readonly format: string;
	/** Size of the guest disk in bytes. */
	readonly capacity: bigint;
	/** Allocated bytes. */
	readonly allocation: bigint;
	/** By the clock of the host; absent if libvirt does not report it. */
	readonly modifiedAt?: Date;
	/** Path of its backing file. */
	readonly backingPath?: string;
}

export interface Use {
	/** Domains with the volume as a disk or as a backing file. */
	readonly domains: readonly string[];
	/** Overlays of it, without aliases. */
	readonly volumes: readonly string[];
}

export interface Holdings {
	readonly volumes: readonly Volume[];
	readonly useOf: (volume: Pick<Volume, 'path'>) => Use;
}

/** virStoragePoolState */
const running = 2;
const fileTypes = ['dir', 'fs', 'netfs'];

/**
 * @param refreshes whether libvirt refreshes the pool first: without a refresh, libvirt does not know about copied
 * files and changed free space
 * @throws AdaptorError 'not-found', 'failed-precondition' for a pool that is not active or whose volumes are not files
 */
export async function openPool(
	session: LibvirtStorage,
	name: string,
	signal: AbortSignal,
	refreshes = false,
): Promise<{readonly pool: StoragePool; readonly availableBytes: bigint}> {
	const {pool} = await session.call(procedures.storagePoolLookupByName, {name}, signal).catch((error: unknown) => {
		throw isLibvirtError(error, libvirtCode.noStoragePool) ? noPool(name, error) : error;
	});
	if (refreshes) {
		await refresh(session, pool, signal);
	}

	const {state, available} = await session.call(procedures.storagePoolGetInfo, {pool}, signal);
	if (state !== running) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Pool ${name} (LIBVIRT_POOL) is not active`,
			remedy: `Run "virsh pool-start ${name}" on the KVM host.`,
		});
	}

	const {xml} = await session.call(procedures.storagePoolGetXmlDesc, {pool, flags: 0}, signal);
	const type = readXml(xml).attributes['type'] ?? '';
	if (!fileTypes.includes(type)) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not use the storage pool: it does not keep volumes as files',
			where: {pool: name, type},
			remedy: 'Use a pool of type dir, fs or netfs.',
		});
	}

	return {pool, availableBytes: available};
}

function noPool(name: string, cause: LibvirtError): AdaptorError {
	return new AdaptorError({
		code: 'not-found',
		what: `Pool ${name} (LIBVIRT_POOL) does not exist on the KVM host`,
		remedy: 'Set LIBVIRT_POOL to a pool that "virsh pool-list --all" shows on the KVM host, or create it with "cloud-api-adaptor image push -create-pool".',
		cause,
	});
}

/**
 * libvirt refuses it while a volume is created in the pool, or if the pool is inactive: then the last known state is
 * used.
 */
export async function refresh(session: LibvirtStorage, pool: StoragePool, signal: AbortSignal): Promise<void> {
	await change(session, procedures.storagePoolRefresh, {pool, flags: 0}, signal).catch((error: unknown) => {
		if (!(error instanceof LibvirtError)) {
			throw error;
		}
	});
}

/** @returns undefined if the name does not exist */
export async function readVolume(
	session: LibvirtStorage,
	pool: string,
	name: string,
	signal: AbortSignal,
): Promise<Volume | undefined> {
	try {
		const {xml} = await session.call(
			procedures.storageVolGetXmlDesc,
			{vol: volumeOf(pool, name), flags: 0},
			signal,
		);
		return volumeFrom(readXml(xml));
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noStorageVol)) {
			return undefined;
		}

		throw error;
	}
}

/** Every volume of the pool and every domain of the host: one call each. */
export async function readHoldings(session: LibvirtStorage, pool: StoragePool, signal: AbortSignal): Promise<Holdings> {
	const [{vols}, {domains}] = await Promise.all([
		session.call(procedures.storagePoolListAllVolumes, {pool, needResults: 1, flags: 0}, signal),
		session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal),
	]);
	const [volumes, disks] = await Promise.all([
		Promise.all(vols.map(async ({name}) => readVolume(session, pool.name, name, signal))),
		Promise.all(domains.map(async dom => ({domain: dom.name, sources: await disksOf(session, dom, signal)}))),
	]);
	const present = volumes.filter(volume => volume !== undefined);
	const pathOf = (disk: DiskSource): string | undefined =>
		'file' in disk
			? disk.file
			: disk.pool === pool.name
				? present.find(({name}) => name === disk.volume)?.path
				: undefined;
	return holdingsOf(
		present,
		disks.map(({domain, sources}) => ({
			domain,
			paths: new Set(sources.map(pathOf).filter(path => path !== undefined)),
		})),
	);
}

/** A disk is a file, or a volume by its name. */
type DiskSource = {readonly file: string} | {readonly pool: string; readonly volume: string};

/** Empty if the domain no longer exists. */
async function disksOf(session: LibvirtStorage, dom: Domain, signal: AbortSignal): Promise<readonly DiskSource[]> {
	try {
		const {xml} = await session.call(procedures.domainGetXmlDesc, {dom, flags: 0}, signal);
		return children(child(readXml(xml), 'devices'), 'disk').flatMap(sourcesOf);
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noDomain)) {
			return [];
		}

		throw error;
	}
}

/** Paths of a disk and, for a running domain, of its backing files (libvirt, docs/formatdomain, "backingStore"). */
function sourcesOf(element: XmlElement): DiskSource[] {
	const {file, pool, volume} = child(element, 'source')?.attributes ?? {};
	const own: DiskSource[] =
		file !== undefined ? [{file}] : pool !== undefined && volume !== undefined ? [{pool, volume}] : [];
	return [...own, ...children(element, 'backingStore').flatMap(sourcesOf)];
}

/** Pure; exported for tests. */
export function holdingsOf(
	volumes: readonly Volume[],
	disks: ReadonlyArray<{readonly domain: string; readonly paths: ReadonlySet<string>}>,
): Holdings {
	return {
		volumes,
		useOf({path}) {
			const above = [...standingOn(volumes, new Set([path]))];
			const paths = new Set([path, ...above.map(volume => volume.path)]);
			return {
				domains: disks
					.filter(disk => !disk.paths.isDisjointFrom(paths))
					.map(({domain}) => domain)
					.sort(),
				volumes: above
					.filter(
						volume => volume.backingPath === undefined || !pointsToVersion(volume.path, volume.backingPath),
					)
					.map(({name}) => name)
					.sort(),
			};
		},
	};
}

/** Direct and indirect overlays of one of the paths. */
function standingOn(volumes: readonly Volume[], paths: Set<string>): Set<Volume> {
	const found = new Set<Volume>();
	for (let before = -1; before < found.size;) {
		before = found.size;
		for (const volume of volumes) {
			if (volume.backingPath !== undefined && paths.has(volume.backingPath) && !paths.has(volume.path)) {
				paths.add(volume.path);
				found.add(volume);
			}
		}
	}

	return found;
}

export function isInUse({domains, volumes}: Use): boolean {
	return domains.length > 0 || volumes.length > 0;
}

function volumeFrom(xml: XmlElement): Volume {
	const text = (...path: readonly string[]): string => child(xml, ...path)?.text ?? '';
	const bytes = (name: string): bigint => (/^\d+$/v.test(text(name)) ? BigInt(text(name)) : 0n);
	const modified = Number(text('target', 'timestamps', 'mtime'));
	const backingPath = text('backingStore', 'path');
	return {
		name: text('name'),
		path: text('target', 'path'),
		format: child(xml, 'target', 'format')?.attributes['type'] ?? 'unknown',
		capacity: bytes('capacity'),
		allocation: bytes('allocation'),
		...(modified > 0 ? {modifiedAt: new Date(modified * 1000)} : {}),
		...(backingPath === '' ? {} : {backingPath}),
	};
}

/**
 * The volumes of a pod VM: the base image they start from, the overlay that is its root disk, the disk for cloud-init.
 * No pool is ever refreshed: that reads every volume in it. libvirt finds a volume by the names of its pool and itself,
 * so neither needs to be looked up first.
 */
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import {isLibvirtError, LibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type StoragePool, type StorageVol} from '../libvirt/wire/procedures.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {volumeXml} from '../libvirt/storage/volume-xml.ts';
import {child, readXml} from '../libvirt/xml.ts';
import {readImageVersion, pointsToVersion} from '../vm-image/version-name.ts';
import {change} from '../libvirt/change.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';

export interface BaseVolume {
	/** Of the volume that disks stand on: where the name is an alias of a version of the image, the version's. */
	readonly name: string;
	/** On the host. */
	readonly path: string;
	/** As the volume says, whatever its name ends in. */
	readonly format: 'qcow2' | 'raw';
	/** Bytes, as the guest sees them. */
	readonly capacity: bigint;
	/** Of the pool, on the host; absent where volumes are not files in one. */
	readonly directory?: string;
	/** When its content last changed, as libvirt writes it; absent where libvirt does not know. */
	readonly changedAt?: string;
}

const gib = 1024n ** 3n;

export function rootVolumeName(instanceName: string): string {
	return `${instanceName}-root.qcow2`;
}

export function cidataVolumeName(instanceName: string): string {
	return `${instanceName}-cidata.iso`;
}

/** @throws AdaptorError 'not-found', 'failed-precondition' for an image in a format that no overlay can stand on */
export async function readBaseVolume(
	session: Pick<LibvirtCalls, 'call'>,
	pool: string,
	name: string,
	signal: AbortSignal,
): Promise<BaseVolume> {
	let xml;
	try {
		({xml} = await session.call(procedures.storageVolGetXmlDesc, {vol: volumeOf(pool, name), flags: 0}, signal));
	} catch (error) {
		throw isLibvirtError(error, libvirtCode.noStorageVol)
			? notFound(pool, name, 'the pool has no such volume', error)
			: error;
	}

	const volume = readXml(xml);
	const backing = child(volume, 'backingStore');
	const backingPath = child(backing, 'path')?.text ?? '';
	const ownPath = child(volume, 'target', 'path')?.text;
	// Only the name of a version of the image: VMs stand on the version, so that the name can be given to another one
	// at any time.
	const isAlias = ownPath !== undefined && pointsToVersion(ownPath, backingPath);
	const path = isAlias ? backingPath : ownPath;
	const image = isAlias ? backing : child(volume, 'target');
	const format = child(image, 'format')?.attributes['type'];
	const changedAt = child(image, 'timestamps', 'mtime')?.text;
	const capacity = child(volume, 'capacity');
	if (
		format === 'raw' &&
		path?.endsWith('.qcow2') === true &&
		readImageVersion(path.slice(path.lastIndexOf('/') + 1)) !== undefined
	) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not use the volume as a pod VM image: it is not complete yet',
			where: {pool, volume: name},
			remedy: 'Wait until it is pushed; "cloud-api-adaptor image list" tells.',
		});
	}

	if (
		path === undefined ||
		capacity === undefined ||
		!/^\d+$/.test(capacity.text) ||
		(format !== 'qcow2' && format !== 'raw')
	) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not use the volume as a pod VM image: it is neither qcow2 nor raw',
			where: {pool, volume: name, ...present({format})},
			remedy: 'Convert it with "qemu-img convert -O qcow2" and upload it again.',
		});
	}

	// In pools whose volumes are files, they are named after them.
	const directory = ownPath?.endsWith(`/${name}`) === true ? ownPath.slice(0, -name.length - 1) : '';
	return {
		name: isAlias ? path.slice(path.lastIndexOf('/') + 1) : name,
		path,
		format,
		capacity: BigInt(capacity.text),
		...present({changedAt}),
		...(directory === '' ? {} : {directory}),
	};
}

/**
 * Why a start has failed that stood on `base`. Nothing keeps an image from being removed between a start's look at it
 * and the disk that stands on it: then it is that, and not what libvirt or QEMU say of a file that they cannot open. (A
 * VM that runs by then keeps the file until it ends.)
 * @returns `failure` itself when the volume is still there, or it cannot be seen
 */
export async function causeOfFailure(
	session: Pick<LibvirtCalls, 'call'>,
	pool: string,
	{name}: Pick<BaseVolume, 'name'>,
	failure: unknown,
	signal: AbortSignal,
): Promise<unknown> {
	if (!(failure instanceof LibvirtError)) {
		return failure;
	}

	try {
		await session.call(procedures.storageVolGetXmlDesc, {vol: volumeOf(pool, name), flags: 0}, signal);
		return failure;
	} catch (error) {
		return isLibvirtError(error, libvirtCode.noStorageVol)
			? notFound(pool, name, 'it was removed while the VM was being started', failure)
			: failure;
	}
}

/** @param why as in "the pool has no such volume" */
export function notFound(pool: string, name: string, why: string, cause: LibvirtError): AdaptorError {
	return new AdaptorError({
		code: 'not-found',
		reason: 'ImageNotFound',
		// These first words are what upstream's end-to-end tests look for in the pod's events.
		what: `Can't retrieve volume ${name}: ${why}`,
		where: {pool, volume: name},
		remedy:
			'Upload the pod VM image with "cloud-api-adaptor image push", or correct LIBVIRT_VOL_NAME or the annotation io.katacontainers.config.hypervisor.image; ' +
			'a file that was copied into the pool shows after "virsh pool-refresh" on the KVM host.',
		cause,
	});
}

/**
 * An overlay that reads through to `base`. Its capacity is never less than the base's: the guest would lose the end of
 * its file system.
 */
export function rootVolumeXml(
	name: string,
	base: Pick<BaseVolume, 'path' | 'format' | 'capacity'>,
	rootDiskSizeGib: number,
): string {
	const wanted = BigInt(rootDiskSizeGib) * gib;
	return volumeXml(name, 'qcow2', wanted > base.capacity ? wanted : base.capacity, base);
}

/** @param capacity bytes */
export function cidataVolumeXml(name: string, capacity: number): string {
	return volumeXml(name, 'raw', BigInt(capacity));
}

/**
 * Creates a volume of a domain that is already defined as ours. One that is there already is a remainder:
 * names derive from the domain's, which libvirt keeps unique.
 */
export async function createVolume(
	session: LibvirtCalls,
	pool: StoragePool,
	name: string,
	xml: string,
	signal: AbortSignal,
): Promise<StorageVol> {
	try {
		return (await change(session, procedures.storageVolCreateXml, {pool, xml, flags: 0}, signal)).vol;
	} catch (error) {
		// The test driver says so with the general number.
		if (
			!isLibvirtError(error, libvirtCode.storageVolExist) &&
			!isLibvirtError(error, libvirtCode.operationFailed)
		) {
			throw error;
		}

		await deleteVolume(session, {pool: pool.name}, name, signal);
		return (await change(session, procedures.storageVolCreateXml, {pool, xml, flags: 0}, signal)).vol;
	}
}

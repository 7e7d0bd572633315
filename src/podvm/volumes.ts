/**
 * The volumes of a pod VM: its base image, the overlay that is its root disk, and the cloud-init disk. Never refreshes
 * a pool, because that reads every volume in it. libvirt finds a volume by the name of its pool and its own name, so no
 * lookup is needed.
 */
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import {isLibvirtError, libvirtCode, type LibvirtError} from '../libvirt/wire/errors.ts';
import {procedures, type StoragePool, type StorageVol} from '../libvirt/wire/procedures.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {volumeXml} from '../libvirt/storage/volume-xml.ts';
import {child, readXml} from '../libvirt/xml.ts';
import {readImageVersion, pointsToVersion} from '../vm-image/version-name.ts';
import {change} from '../libvirt/change.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';

export interface BaseVolume {
	/** The volume that is the backing file of disks: if the name is an alias, the version that it points to. */
	readonly name: string;
	/** On the host. */
	readonly path: string;
	/** The format of the volume, independent of its file name. */
	readonly format: 'qcow2' | 'raw';
	/** Size of the guest disk in bytes. */
	readonly capacity: bigint;
	/** Directory of the pool on the host; absent if its volumes are not files in a directory. */
	readonly directory?: string;
	/** Time of the last change of its content, in the format of libvirt; absent if libvirt does not know it. */
	readonly changedAt?: string;
}

const gib = 1024n ** 3n;

export function rootVolumeName(instanceName: string): string {
	return `${instanceName}-root.qcow2`;
}

export function cidataVolumeName(instanceName: string): string {
	return `${instanceName}-cidata.iso`;
}

/**
 * @throws AdaptorError 'not-found', 'failed-precondition' for a format that cannot be the backing file of an overlay
 */
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
	// Only an alias: VMs use the version, so the alias can point to another version at any time.
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
			what: 'Could not use the volume as a pod VM image: its upload is not complete',
			where: {pool, volume: name},
			remedy: 'Wait until the push is complete; "cloud-api-adaptor image list" shows the state.',
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

	// In pools of files, volumes have the names of the files.
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

/** @param why as in "the pool has no such volume" */
export function notFound(pool: string, name: string, why: string, cause: LibvirtError): AdaptorError {
	return new AdaptorError({
		code: 'not-found',
		reason: 'ImageNotFound',
		// The end-to-end tests of upstream search events of the pod for these words, up to the name.
		what: `Error in creating volume: Can't retrieve volume ${name}: ${why}`,
		where: {pool, volume: name},
		remedy:
			'Upload the pod VM image with "cloud-api-adaptor image push", or correct LIBVIRT_VOL_NAME or the annotation io.katacontainers.config.hypervisor.image; ' +
			'libvirt lists a file that was copied into the pool only after "virsh pool-refresh" on the KVM host.',
		cause,
	});
}

/**
 * An overlay with the backing file `base`. Its capacity is at least that of the base: otherwise the guest would lose
 * the end of its file system.
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
 * Creates a volume of a domain that is already defined. An existing volume is a leftover: names are derived from the
 * name of the domain, which is unique in libvirt.
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
		// The test driver reports it with the general error number.
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

/**
 * The configured name on the host: an alias, which is a thin volume with one version of the image as its backing file
 * (docs/adr/0019). libvirt cannot rename volumes. The alias is small enough to be rewritten in one write, and VMs use
 * the version, not the alias.
 */
import {AdaptorError} from '../core/errors.ts';
import {pause, Scope} from '../core/lifetime.ts';
import {isLibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type StoragePool} from '../libvirt/wire/procedures.ts';
import {inOnePiece} from '../libvirt/streams.ts';
import {imageStem, readImageVersion, pointsToVersion} from '../vm-image/version-name.ts';
import {thinQcow2} from './qcow2.ts';
import {change} from '../libvirt/change.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {isInUse, readVolume, refresh, type Holdings, type LibvirtStorage, type Use, type Volume} from './volumes.ts';
import {volumeXml} from '../libvirt/storage/volume-xml.ts';

/** Disks of pod VMs of any cluster, and of upstream: never base images. */
export const podDisk = /^podvm-.*-(?:root\.qcow2|(?:cidata|cloudinit)\.iso)$/v;
/** Time limit until libvirt sees the written content. */
const visibleTimeoutMs = 30_000;
/** libvirt usually sees it at once. */
const lookAgainMs = 50;

/** The version that the alias points to; the volume itself if it is an image; undefined if the name does not exist. */
export function currentVersion(name: string, volumes: readonly Volume[]): Volume | undefined {
	const named = volumes.find(volume => volume.name === name);
	return named !== undefined && isAlias(named) ? volumes.find(({path}) => path === named.backingPath) : named;
}

/** Whether the volume is an alias. */
export function isAlias({path, backingPath}: Volume): boolean {
	return backingPath !== undefined && pointsToVersion(path, backingPath);
}

/**
 * Checks whether the name can become an alias of a version of its image.
 * @throws AdaptorError 'failed-precondition' if it cannot, with alternatives
 */
export function checkName(name: string, {volumes, useOf}: Holdings): void {
	const volume = volumes.find(each => each.name === name);
	if (readImageVersion(name) !== undefined) {
		throw taken(
			name,
			'it is the name of one version',
			`Set LIBVIRT_VOL_NAME to ${imageStem(name)}.qcow2, or pass -no-switch and set it to the new version's name.`,
		);
	}

	if (podDisk.test(name)) {
		throw taken(
			name,
			"it is the name of a pod VM's disk, from which no pod may start",
			'Set LIBVIRT_VOL_NAME to another.',
		);
	}

	if (volume !== undefined && !isAlias(volume)) {
		const use = useOf(volume);
		throw taken(
			name,
			`it is a separate image, not an alias${isInUse(use) ? ` that is in use by ${describeUse(use)}` : ''}, which is never overwritten`,
			isInUse(use)
				? "Set LIBVIRT_VOL_NAME to a new name, or pass -no-switch and set it to the new version's name."
				: `Remove it with "cloud-api-adaptor image rm ${name} -force" first, set LIBVIRT_VOL_NAME to a new name, or pass -no-switch.`,
		);
	}

	// Other programs may have made overlays of the alias itself.
	if (volume !== undefined && isInUse(useOf(volume))) {
		throw taken(
			name,
			`${describeUse(useOf(volume))} use the alias as their backing file`,
			"Wait for them to end, or pass -no-switch and set LIBVIRT_VOL_NAME to the new version's name.",
		);
	}
}

/** Points the alias to the version. At every moment, the alias points either to the old version or to the new one. */
export async function pointAliasAt(
	session: LibvirtStorage,
	pool: StoragePool,
	name: string,
	version: Volume,
	signal: AbortSignal,
): Promise<void> {
	if (version.format !== 'qcow2' && version.format !== 'raw') {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not use the volume as a pod VM image: it is neither qcow2 nor raw',
			where: {volume: version.name, format: version.format},
		});
	}

	if (!pointsToVersion(`${version.path.slice(0, version.path.lastIndexOf('/'))}/${name}`, version.path)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Could not point the alias to the image: the image is not a version of that alias',
			where: {name, volume: version.name},
			remedy: 'Choose one that "cloud-api-adaptor image list" shows, or set LIBVIRT_VOL_NAME to this one.',
		});
	}

	const backing = {path: version.path, format: version.format} as const;
	try {
		await change(
			session,
			procedures.storageVolCreateXml,
			{pool, xml: volumeXml(name, 'qcow2', version.capacity, backing), flags: 0},
			signal,
		);
	} catch (error) {
		if (!isLibvirtError(error, libvirtCode.storageVolExist)) {
			throw error;
		}

		const bytes = thinQcow2(backing, version.capacity);
		await session.upload(volumeOf(pool.name, name), inOnePiece(bytes), {offset: 0, length: bytes.length}, signal);
	}

	// libvirt rounds volumes up to KiB.
	await untilSeen(
		session,
		pool,
		name,
		({backingPath, capacity}) =>
			backingPath === version.path && capacity >= version.capacity && capacity < version.capacity + 1024n,
		signal,
	);
}

/**
 * Waits until libvirt sees the written content. It rereads a volume after an upload, unless it is busy with the pool.
 * @throws AdaptorError 'data-loss' if it does not
 */
export async function untilSeen(
	session: LibvirtStorage,
	pool: StoragePool,
	name: string,
	isRight: (volume: Volume) => boolean,
	signal: AbortSignal,
): Promise<Volume> {
	using patience = new Scope().deadline(visibleTimeoutMs, 'libvirt to report the written content of the volume');
	using scope = new Scope(signal, patience.signal);
	for (let look = 1; ; look++) {
		const volume = await readVolume(session, pool.name, name, signal);
		if (volume !== undefined && isRight(volume)) {
			return volume;
		}

		if (volume === undefined || patience.signal.aborted) {
			throw new AdaptorError({
				code: 'data-loss',
				what:
					volume === undefined
						? 'The volume disappeared while it was written'
						: 'libvirt does not report the written content of the volume',
				where: {
					pool: pool.name,
					volume: name,
					...(volume === undefined ? {} : {format: volume.format, capacity: String(volume.capacity)}),
				},
				remedy: 'Check the volume with "virsh vol-dumpxml", check the storage of the KVM host, then push again.',
			});
		}

		if (look % 10 === 0) {
			await refresh(session, pool, signal);
		}

		await pause(lookAgainMs, scope.signal).catch(() => signal.throwIfAborted());
	}
}

export function describeUse({domains, volumes}: Use): string {
	const some = (names: readonly string[]): string =>
		names.length > 3 ? `${names.slice(0, 3).join(', ')} and ${names.length - 3} more` : names.join(', ');
	return domains.length > 0 ? some(domains) : some(volumes);
}

function taken(name: string, why: string, remedy: string): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `Could not give the configured name to a new version of the image: ${why}`,
		where: {volume: name},
		remedy,
	});
}

/** The images of a pool: lists them with their users, and removes unused ones. */
import {AdaptorError} from '../core/errors.ts';
import {imageStem, readImageVersion} from '../vm-image/version-name.ts';
import {completenessOf, type Completeness} from './incomplete.ts';
import {checkName, currentVersion, describeUse, pointAliasAt, isAlias, podDisk} from './name.ts';
import {present} from '../core/present.ts';
import {deleteOrigin, isOrigin, readOrigin, removeStrayOrigins, type Origin} from './origin.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';
import {isInUse, openPool, readHoldings, type Holdings, type LibvirtStorage, type Use, type Volume} from './volumes.ts';

export interface CatalogueOptions {
	readonly session: LibvirtStorage;
	readonly pool: string;
	/** LIBVIRT_VOL_NAME */
	readonly name: string;
	readonly now: Date;
}

export interface Image {
	readonly volume: string;
	readonly format: string;
	/** Allocated bytes. */
	readonly size: bigint;
	/** Size of the guest disk in bytes. */
	readonly virtualSize: bigint;
	readonly madeAt: Date | undefined;
	readonly completeness: Completeness;
	/** Whether it is the default image. */
	readonly isCurrent: boolean;
	readonly use: Use;
	/** Absent if it is not known. */
	readonly origin?: Origin;
}

/** Newest first. Overlays are left out: they are disks of VMs, or aliases. */
export async function listImages(
	{session, pool: poolName, name, now}: CatalogueOptions,
	signal: AbortSignal,
): Promise<readonly Image[]> {
	const {pool} = await openPool(session, poolName, signal);
	const holdings = await readHoldings(session, pool, signal);
	const current = currentVersion(name, holdings.volumes);
	const images = holdings.volumes
		.filter(
			volume =>
				volume === current ||
				(volume.backingPath === undefined && !podDisk.test(volume.name) && !isOrigin(volume)),
		)
		.map(async volume => ({
			volume: volume.name,
			format: volume.format,
			size: volume.allocation,
			virtualSize: volume.capacity,
			madeAt: readImageVersion(volume.name)?.madeAt ?? volume.modifiedAt,
			completeness: await completenessOf(session, poolName, volume, now, signal),
			isCurrent: volume === current,
			use: holdings.useOf(volume),
			...present({origin: await readOrigin(session, poolName, volume, holdings.volumes, signal)}),
		}));
	return (await Promise.all(images)).sort(
		(a, b) => (b.madeAt?.getTime() ?? 0) - (a.madeAt?.getTime() ?? 0) || a.volume.localeCompare(b.volume),
	);
}

/** Points the configured alias to an existing version, for example back to the previous one. */
export async function useImage(
	{session, pool: poolName, name, now}: CatalogueOptions,
	volumeName: string,
	signal: AbortSignal,
): Promise<void> {
	const {pool} = await openPool(session, poolName, signal);
	const holdings = await readHoldings(session, pool, signal);
	const volume = find(holdings, poolName, volumeName);
	if ((await completenessOf(session, poolName, volume, now, signal)) !== 'complete') {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not use the image: it is not complete',
			where: {pool: poolName, volume: volumeName},
			remedy: 'Wait for its push, or push it again.',
		});
	}

	checkName(name, holdings);
	await pointAliasAt(session, pool, name, volume, signal);
}

/**
 * @param force also removes the version that the alias points to, and the alias itself; never an image in use by VMs
 * @returns names of the removed volumes
 */
export async function removeImage(
	{session, pool: poolName, name, now}: CatalogueOptions,
	volumeName: string,
	force: boolean,
	signal: AbortSignal,
): Promise<readonly string[]> {
	const {pool} = await openPool(session, poolName, signal);
	const holdings = await readHoldings(session, pool, signal);
	const volume = find(holdings, poolName, volumeName);
	if (podDisk.test(volumeName)) {
		throw refusal(poolName, volumeName, 'it is the disk of a pod VM', 'It is removed together with its VM.');
	}

	const use = holdings.useOf(volume);
	if (isInUse(use)) {
		throw refusal(
			poolName,
			volumeName,
			`it is in use by ${describeUse(use)}`,
			'It cannot be removed while they exist. Afterwards, "cloud-api-adaptor image prune" removes it.',
		);
	}

	if ((await completenessOf(session, poolName, volume, now, signal)) === 'under way' && !force) {
		throw refusal(
			poolName,
			volumeName,
			'a push is under way',
			'Wait until the push ends. If you know that the pushing process is dead, pass -force.',
		);
	}

	const isConfigured = volumeName === name || volume === currentVersion(name, holdings.volumes);
	if (isConfigured && !force) {
		throw refusal(
			poolName,
			volumeName,
			`it is the default image for pods that select no image: LIBVIRT_VOL_NAME is ${name}`,
			'Select another default image with "cloud-api-adaptor image use", or pass -force.',
		);
	}

	// Aliases that would point to nothing are removed first.
	const names = holdings.volumes
		.filter(each => isAlias(each) && each.backingPath === volume.path)
		.map(each => each.name);
	const removed: string[] = [];
	for (const each of [...names, volumeName]) {
		if (await deleteVolume(session, {pool: poolName}, each, signal)) {
			removed.push(each);
		}
	}

	await deleteOrigin(session, poolName, volumeName, signal);
	return removed;
}

/**
 * Removes old versions of the configured image that nothing uses, and leftovers of pushes. A StartVM that has just
 * resolved the alias uses that version a moment later, so keep one more version than the current one.
 * @param keep number of newest versions to keep, besides the current one and those in use; at least 1
 * @returns names of the removed volumes
 */
export async function pruneImages(
	{session, pool: poolName, name, now}: CatalogueOptions,
	keep: number,
	signal: AbortSignal,
): Promise<readonly string[]> {
	const {pool} = await openPool(session, poolName, signal);
	const holdings = await readHoldings(session, pool, signal);
	const removed: string[] = [];
	let complete = 0;
	for (const volume of versionsOf(holdings, imageStem(name))) {
		const completeness = await completenessOf(session, poolName, volume, now, signal);
		complete += completeness === 'complete' ? 1 : 0;
		if (completeness === 'under way' || (completeness === 'complete' && complete <= keep)) {
			continue;
		}

		// Read again, because each removal takes time.
		const present = await readHoldings(session, pool, signal);
		const isNamed =
			present.volumes.some(each => isAlias(each) && each.backingPath === volume.path) || volume.name === name;
		if (
			!isNamed &&
			!isInUse(present.useOf(volume)) &&
			(await deleteVolume(session, {pool: poolName}, volume.name, signal))
		) {
			removed.push(volume.name);
			await deleteOrigin(session, poolName, volume.name, signal);
		}
	}

	await removeStrayOrigins(session, poolName, (await readHoldings(session, pool, signal)).volumes, signal);
	return removed;
}

/** Newest first. */
function versionsOf({volumes}: Holdings, stem: string): readonly Volume[] {
	const madeAt = ({name}: Volume): number => readImageVersion(name)?.madeAt.getTime() ?? 0;
	return volumes.filter(({name}) => readImageVersion(name)?.stem === stem).sort((a, b) => madeAt(b) - madeAt(a));
}

function find({volumes}: Holdings, pool: string, name: string): Volume {
	const volume = volumes.find(each => each.name === name);
	if (volume === undefined) {
		throw new AdaptorError({
			code: 'not-found',
			what: 'There is no such image in the pool',
			where: {pool, volume: name},
			remedy: 'See "cloud-api-adaptor image list".',
		});
	}

	return volume;
}

function refusal(pool: string, volume: string, why: string, remedy: string): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `Could not remove the image: ${why}`,
		where: {pool, volume},
		remedy,
	});
}

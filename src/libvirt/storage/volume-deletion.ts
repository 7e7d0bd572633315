/**
 * Deletes one volume, or says that it may still be there. Only an active pool proves that a volume is gone: an
 * administrator may have undefined or stopped the pool, or defined it anew with another directory, and the file stays,
 * with whatever secrets it holds.
 */
import {retry} from '../../core/concurrency/retry.ts';
import {AdaptorError} from '../../core/errors.ts';
import {present} from '../../core/present.ts';
import {change} from '../change.ts';
import type {LibvirtSession} from '../session.ts';
import {isLibvirtError, libvirtCode, LibvirtError} from '../wire/errors.ts';
import {procedures} from '../wire/procedures.ts';
import {volumeOf} from './volume-name.ts';

/** While a volume is still being made or written, libvirt refuses to delete it: how often and how soon to ask again. */
const busyRetries = {times: 20, everyMs: 250};

type Calls = Pick<LibvirtSession, 'call'>;

/** Where a volume is. */
export interface VolumePlace {
	readonly pool: string;
	/**
	 * Of the pool, on the KVM host. Without it nothing is found by another pool, and the pool is taken for the one that
	 * it was.
	 */
	readonly directory?: string;
}

/**
 * Waits while the volume is busy. Succeeds when there is no such volume. Where the pool is gone, the volume is deleted
 * through the pool that has the directory now.
 * @returns whether there was one
 * @throws AdaptorError 'failed-precondition' when no active pool has it
 */
export async function deleteVolume(
	session: Calls,
	place: VolumePlace,
	name: string,
	signal: AbortSignal,
): Promise<boolean> {
	return retry(
		async () => deleteOnce(session, place, name, signal),
		{
			backOff: [busyRetries.everyMs, busyRetries.everyMs],
			onFailure(error, {attempt}) {
				if (!isLibvirtError(error, libvirtCode.operationInvalid) || attempt > busyRetries.times) {
					throw error;
				}
			},
		},
		signal,
	);
}

async function deleteOnce(
	session: Calls,
	{pool, directory}: VolumePlace,
	name: string,
	signal: AbortSignal,
): Promise<boolean> {
	try {
		await change(session, procedures.storageVolDelete, {vol: volumeOf(pool, name), flags: 0}, signal);
		return true;
	} catch (error) {
		const doubt = error instanceof LibvirtError ? doubts[error.libvirtCode] : undefined;
		if (doubt === undefined) {
			throw error;
		}

		const holder = directory === undefined ? undefined : await activePoolAt(session, directory, signal);
		// libvirt does not tell, or it is the pool that was asked.
		if (holder === undefined ? !isLibvirtError(error, libvirtCode.noStoragePool) : holder.pool === pool) {
			if (isLibvirtError(error, libvirtCode.noStorageVol)) {
				return false;
			}

			throw error;
		}

		if (holder?.pool === undefined) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: `the storage pool ${doubt.fault} on the KVM host, so its files may still be there`,
				where: {pool, ...present({directory})},
				remedy: doubt.remedy(pool),
				cause: error,
			});
		}

		return deleteOnce(session, {pool: holder.pool}, name, signal);
	}
}

interface Doubt {
	/** What has happened to the pool, unless what libvirt says is true of the volume. */
	readonly fault: string;
	readonly remedy: (pool: string) => string;
}

/** Answers after which the volume may still be there, by libvirt's number. */
const doubts: Readonly<Record<number, Doubt>> = {
	[libvirtCode.noStoragePool]: {
		fault: 'is not defined',
		remedy: pool => `Define and start the pool "${pool}" again on the KVM host`,
	},
	/** Also while the volume is busy. */
	[libvirtCode.operationInvalid]: {
		fault: 'is not active',
		remedy: pool => `Run "virsh pool-start ${pool}" on the KVM host`,
	},
	[libvirtCode.noStorageVol]: {
		fault: 'has another directory now',
		remedy: pool => `Start a pool with the former directory of "${pool}" on the KVM host, under any name`,
	},
};

/** @returns its name, if there is one; undefined when libvirt cannot tell */
async function activePoolAt(
	session: Calls,
	path: string,
	signal: AbortSignal,
): Promise<{readonly pool: string | undefined} | undefined> {
	try {
		return {pool: (await session.call(procedures.storagePoolLookupByTargetPath, {path}, signal)).pool.name};
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noStoragePool)) {
			return {pool: undefined};
		}

		// As the test driver.
		if (isLibvirtError(error, libvirtCode.noSupport)) {
			return undefined;
		}

		throw error;
	}
}

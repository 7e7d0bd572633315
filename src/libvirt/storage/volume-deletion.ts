/**
 * Deletes one volume, or reports that it may still exist. Only an active pool proves that a volume is gone: an
 * administrator may have undefined or stopped the pool, or redefined it with another directory. Then the file still
 * exists, with the secrets in it.
 */
import {retry} from '../../core/concurrency/retry.ts';
import {AdaptorError} from '../../core/errors.ts';
import {present} from '../../core/present.ts';
import {change} from '../change.ts';
import type {LibvirtSession} from '../session.ts';
import {isLibvirtError, libvirtCode, LibvirtError} from '../wire/errors.ts';
import {procedures} from '../wire/procedures.ts';
import {volumeOf} from './volume-name.ts';

/** libvirt refuses to delete a volume that is being created or written: how often and how soon to retry. */
const busyRetries = {times: 20, everyMs: 250};

type Calls = Pick<LibvirtSession, 'call'>;

/** Where a volume is. */
export interface VolumePlace {
	readonly pool: string;
	/**
	 * The directory of the pool on the KVM host. If absent, other pools are not searched, and the pool is assumed to be
	 * unchanged.
	 */
	readonly directory?: string;
}

/**
 * Waits while the volume is busy. Succeeds if the volume does not exist. If the pool is gone, deletes the volume
 * through the pool that now has the directory.
 * @returns whether the volume existed
 * @throws AdaptorError 'failed-precondition' if no active pool has the directory
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
		// libvirt cannot say which pool has the directory, or it is the same pool.
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
	/** What has happened to the pool, if the error is not about the volume itself. */
	readonly fault: string;
	readonly remedy: (pool: string) => string;
}

/** Errors after which the volume may still exist, keyed by the error number of libvirt. */
const doubts: Readonly<Record<number, Doubt>> = {
	[libvirtCode.noStoragePool]: {
		fault: 'is not defined',
		remedy: pool => `Define and start the pool "${pool}" again on the KVM host`,
	},
	/** libvirt also returns this error while the volume is busy. */
	[libvirtCode.operationInvalid]: {
		fault: 'is not active',
		remedy: pool => `Run "virsh pool-start ${pool}" on the KVM host`,
	},
	[libvirtCode.noStorageVol]: {
		fault: 'now has a different directory',
		remedy: pool => `Start a pool with the former directory of "${pool}" on the KVM host, under any name`,
	},
};

/** @returns the name of the pool, if there is one; undefined if libvirt cannot tell */
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

		// For example the test driver.
		if (isLibvirtError(error, libvirtCode.noSupport)) {
			return undefined;
		}

		throw error;
	}
}

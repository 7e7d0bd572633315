/** Creates a storage pool of type dir: builds it, starts it and turns on its autostart. */
import {AdaptorError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {isLibvirtError, LibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type StoragePool} from '../libvirt/wire/procedures.ts';
import {directoryPoolXml} from '../libvirt/storage/volume-xml.ts';
import {change} from '../libvirt/change.ts';
import type {LibvirtStorage} from './volumes.ts';

/** Time limit to undefine a pool that could not be built: one call. */
const forgetTimeoutMs = 10_000;

/**
 * Performs only the missing steps, so it may be repeated after an interruption: an existing pool is started, and
 * otherwise unchanged. A pool that cannot be built is removed: the next attempt may use another directory.
 * @param path absolute, on the host
 * @returns the performed steps, for an operator
 */
export async function createPool(
	session: LibvirtStorage,
	name: string,
	path: string,
	signal: AbortSignal,
): Promise<readonly string[]> {
	const done: string[] = [];
	await using undo = new AsyncDisposableStack();
	let pool = await lookUp(session, name, signal);
	const isNew = pool === undefined;
	if (pool === undefined) {
		const made = (
			await change(
				session,
				procedures.storagePoolDefineXml,
				{xml: directoryPoolXml(name, path), flags: 0},
				signal,
			)
		).pool;
		undo.defer(async () => forget(session, made));
		pool = made;
		done.push(`defined in ${path}`);
	}

	const {active} = await session.call(procedures.storagePoolIsActive, {pool}, signal);
	if (active === 0) {
		// Creates the directory; an existing one is used.
		try {
			await change(session, procedures.storagePoolBuild, {pool, flags: 0}, signal);
			await change(session, procedures.storagePoolCreate, {pool, flags: 0}, signal);
		} catch (error) {
			throw error instanceof LibvirtError
				? new AdaptorError({
						code: error.code,
						what: `Could not ${isNew ? 'create' : 'start'} the storage pool: ${error.libvirtMessage}`,
						where: {pool: name, ...(isNew ? {path} : {})},
						remedy: isNew
							? 'Set LIBVIRT_DIR_NAME to a directory that libvirt can create on the KVM host.'
							: `Look at "virsh pool-dumpxml ${name}" on the KVM host.`,
						cause: error,
					})
				: error;
		}

		done.push('built and started');
	}

	undo.move();

	if (isNew || active === 0) {
		await change(session, procedures.storagePoolSetAutostart, {pool, autostart: 1}, signal);
		done.push('set to start with the host');
	}

	return done;
}

/** Never throws: the caller gets the failure that led here. */
async function forget(session: LibvirtStorage, pool: StoragePool): Promise<void> {
	using scope = new Scope().deadline(forgetTimeoutMs, 'libvirt to forget a pool that could not be built');
	await change(session, procedures.storagePoolUndefine, {pool}, scope.signal).catch(() => undefined);
}

async function lookUp(session: LibvirtStorage, name: string, signal: AbortSignal): Promise<StoragePool | undefined> {
	try {
		return (await session.call(procedures.storagePoolLookupByName, {name}, signal)).pool;
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noStoragePool)) {
			return undefined;
		}

		throw error;
	}
}

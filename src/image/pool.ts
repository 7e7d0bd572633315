/** A storage pool where there is none: a directory, built, started, and started again with the host. */
import {AdaptorError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {isLibvirtError, LibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type StoragePool} from '../libvirt/wire/procedures.ts';
import {directoryPoolXml} from '../libvirt/storage/volume-xml.ts';
import {change} from '../libvirt/change.ts';
import type {LibvirtStorage} from './volumes.ts';

const forgetTimeoutMs = 10_000;

/**
 * Does what is missing only, so that it may be repeated after it was cut off: an existing pool stays as it is, apart
 * from being started. One that cannot be built is not left behind: the next attempt may name another directory.
 * @param path absolute, on the host
 * @returns what was done, in the words of an operator
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
		// Makes the directory; one that is there is taken as it is.
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
							? 'Name a directory that libvirt can make on the KVM host in LIBVIRT_DIR_NAME.'
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

/** Never throws: what led here is what the caller shall see. */
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

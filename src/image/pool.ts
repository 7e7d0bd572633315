/** A storage pool where there is none: a directory, built, started, and started again with the host. */
import {isLibvirtError, libvirtCode} from '../libvirt/errors.ts';
import {procedures, type StoragePool} from '../libvirt/procedures.ts';
import {directoryPoolXml} from './volume-xml.ts';
import {change, type LibvirtStorage} from './volumes.ts';

/**
 * Does what is missing only, so that it may be repeated after it was cut off: an existing pool stays as it is, apart from being started.
 * @param path absolute, on the host
 * @returns what was done, in the words of an operator
 */
export async function createPool(session: LibvirtStorage, name: string, path: string, signal: AbortSignal): Promise<readonly string[]> {
	const done: string[] = [];
	let pool = await lookUp(session, name, signal);
	const isNew = pool === undefined;
	if (pool === undefined) {
		({pool} = await change(session, procedures.storagePoolDefineXml, {xml: directoryPoolXml(name, path), flags: 0}, signal));
		done.push(`defined in ${path}`);
	}

	const {active} = await session.call(procedures.storagePoolIsActive, {pool}, signal);
	if (active === 0) {
		// Makes the directory; one that is there is taken as it is.
		await change(session, procedures.storagePoolBuild, {pool, flags: 0}, signal);
		await change(session, procedures.storagePoolCreate, {pool, flags: 0}, signal);
		done.push('built and started');
	}

	if (isNew || active === 0) {
		await change(session, procedures.storagePoolSetAutostart, {pool, autostart: 1}, signal);
		done.push('set to start with the host');
	}

	return done;
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

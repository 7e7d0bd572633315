/** The two disks of a pod VM whose domain is already defined: the overlay of its image, and the cloud-init disk. */
import type {StoragePool} from '../libvirt/wire/procedures.ts';
import {inOnePiece} from '../libvirt/streams.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {PodVmMetadata} from './metadata.ts';
import {settleAll} from './removal.ts';
import {cidataVolumeXml, createVolume, rootVolumeXml, type BaseVolume} from './volumes.ts';

export interface Disks {
	readonly base: BaseVolume;
	readonly rootDiskSizeGib: number;
	/** Content of the cloud-init disk. */
	readonly iso: Buffer;
}

/** Creates both at the same time. When it rejects, neither is still in progress. */
export async function makeDisks(
	session: LibvirtCalls,
	pool: StoragePool,
	{rootVolume, cidataVolume}: Pick<PodVmMetadata, 'rootVolume' | 'cidataVolume'>,
	{base, rootDiskSizeGib, iso}: Disks,
	signal: AbortSignal,
): Promise<void> {
	await settleAll([
		createVolume(session, pool, rootVolume, rootVolumeXml(rootVolume, base, rootDiskSizeGib), signal),
		makeCidata(session, pool, cidataVolume, iso, signal),
	]);
}

async function makeCidata(
	session: LibvirtCalls,
	pool: StoragePool,
	name: string,
	iso: Buffer,
	signal: AbortSignal,
): Promise<void> {
	const volume = await createVolume(session, pool, name, cidataVolumeXml(name, iso.length), signal);
	await session.upload(volume, inOnePiece(iso), {offset: 0, length: iso.length}, signal);
}

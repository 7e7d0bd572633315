/**
 * Finds versions of an image whose push did not complete, and tells which of them are abandoned (no push is writing
 * them any more).
 */
import type {StoragePool} from '../libvirt/wire/procedures.ts';
import {readImageVersion} from '../vm-image/version-name.ts';
import {isGone, noteBytes, readNote} from './pusher.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {isInUse, type Holdings, type LibvirtStorage, type Volume} from './volumes.ts';

/**
 * A version that another machine pushes counts as abandoned after this time without a change. While it is written, its
 * time changes.
 */
export const abandonedAfterMs = 3_600_000;

export type Completeness = 'complete' | 'under way' | 'abandoned';

/**
 * @param now current time; the clock may differ from the clock of the host, but by much less than `abandonedAfterMs`
 */
export async function completenessOf(
	session: LibvirtStorage,
	pool: string,
	volume: Volume,
	now: Date,
	signal: AbortSignal,
): Promise<Completeness> {
	// An incomplete version is raw until its end, and only this program uses such names.
	if (readImageVersion(volume.name) === undefined || volume.format !== 'raw') {
		return 'complete';
	}

	const note = readNote(await readStart(session, pool, volume.name, signal));
	if (note.isComplete) {
		return 'complete';
	}

	const isAbandoned =
		(note.pusher === undefined ? undefined : await isGone(note.pusher)) ??
		now.getTime() - (volume.modifiedAt ?? now).getTime() > abandonedAfterMs;
	return isAbandoned ? 'abandoned' : 'under way';
}

/** Removes abandoned versions of the image. @returns their names */
export async function removeAbandoned(
	session: LibvirtStorage,
	pool: StoragePool,
	holdings: Holdings,
	stem: string,
	now: Date,
	signal: AbortSignal,
): Promise<readonly string[]> {
	const removed: string[] = [];
	for (const volume of holdings.volumes.filter(({name}) => readImageVersion(name)?.stem === stem)) {
		const isRemovable =
			(await completenessOf(session, pool.name, volume, now, signal)) === 'abandoned' &&
			!isInUse(holdings.useOf(volume));
		if (isRemovable && (await deleteVolume(session, {pool: pool.name}, volume.name, signal))) {
			removed.push(volume.name);
		}
	}

	return removed;
}

async function readStart(session: LibvirtStorage, pool: string, name: string, signal: AbortSignal): Promise<Buffer> {
	const chunks: Buffer[] = [];
	for await (const chunk of session.download(volumeOf(pool, name), {length: noteBytes}, signal)) {
		chunks.push(chunk);
	}

	return Buffer.concat(chunks);
}

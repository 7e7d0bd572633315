/**
 * Where a version of an image came from: a small JSON volume beside it, `podvm-base-20261123T045658Z.origin.json`,
 * since volumes have no metadata (docs/adr/0019). Written when the version is complete. `image list` shows it, and a
 * push of the same content finds the version by it.
 */
import {at, numberAt, parseJsonOrNothing, textAt} from '../core/json.ts';
import {present} from '../core/present.ts';
import {change} from '../libvirt/change.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {volumeXml} from '../libvirt/storage/volume-xml.ts';
import {inOnePiece} from '../libvirt/streams.ts';
import {procedures, type StoragePool} from '../libvirt/wire/procedures.ts';
import {imageStem, readImageVersion} from '../vm-image/version-name.ts';
import type {LibvirtStorage, Volume} from './volumes.ts';

/** The file in the container image that the bytes are from. */
export interface ContainerFile {
	/** Digest of the manifest: equal digests mean equal files. */
	readonly manifest: string;
	/** Without leading slash. */
	readonly path: string;
}

export interface Origin {
	/** The reference or the path that was pushed. */
	readonly source: string;
	/** Absent for a file that is not in a container image. */
	readonly container?: ContainerFile;
	/** Digest of the bytes, `sha256:…`. */
	readonly digest: string;
	/** Bytes. */
	readonly size: number;
	readonly pushedAt: Date;
	/** Last change of the volume by the clock of its host: a volume that was changed since then has another content. */
	readonly changedAt: Date | undefined;
}

/** Size of the volume; no reference is as long. */
const volumeBytes = 8192;
const suffix = '.origin.json';
const extension = /\.(?:qcow2|raw)$/v;

function originName(version: string): string {
	return version.replace(extension, suffix);
}

export function isOrigin({name}: Pick<Volume, 'name'>): boolean {
	return name.endsWith(suffix) && readImageVersion(name.replace(suffix, '.raw')) !== undefined;
}

export async function writeOrigin(
	session: LibvirtStorage,
	pool: StoragePool,
	version: string,
	{pushedAt, changedAt, ...origin}: Origin,
	signal: AbortSignal,
): Promise<void> {
	const name = originName(version);
	const text = JSON.stringify({
		...origin,
		// A reference is shorter, and the rest of a path says as much.
		source: origin.source.slice(-1024).toWellFormed(),
		pushedAt: pushedAt.toISOString(),
		...present({changedAt: changedAt?.toISOString()}),
	});
	const bytes = Buffer.alloc(volumeBytes);
	bytes.write(`${text}\n`);
	await change(
		session,
		procedures.storageVolCreateXml,
		{pool, xml: volumeXml(name, 'raw', BigInt(volumeBytes)), flags: 0},
		signal,
	);
	await session.upload(volumeOf(pool.name, name), inOnePiece(bytes), {offset: 0, length: bytes.length}, signal);
}

/** @returns undefined if it is not known, for example of an image that another program uploaded */
export async function readOrigin(
	session: LibvirtStorage,
	pool: string,
	version: Volume,
	volumes: readonly Volume[],
	signal: AbortSignal,
): Promise<Origin | undefined> {
	const name = originName(version.name);
	if (readImageVersion(version.name) === undefined || !volumes.some(each => each.name === name)) {
		return undefined;
	}

	const chunks: Buffer[] = [];
	for await (const chunk of session.download(volumeOf(pool, name), {length: volumeBytes}, signal)) {
		chunks.push(chunk);
	}

	return parseOrigin(Buffer.concat(chunks));
}

/** Pure; exported for tests. */
export function parseOrigin(bytes: Buffer): Origin | undefined {
	const end = bytes.indexOf(0);
	const json = parseJsonOrNothing(end === -1 ? bytes : bytes.subarray(0, end));
	const [source, digest, size] = [textAt(json, 'source'), textAt(json, 'digest'), numberAt(json, 'size')];
	const [pushedAt, changedAt] = ['pushedAt', 'changedAt'].map(member => new Date(textAt(json, member) ?? NaN));
	const [manifest, path] = ['manifest', 'path'].map(member => textAt(json, 'container', member));
	if (
		source === undefined ||
		digest === undefined ||
		size === undefined ||
		pushedAt === undefined ||
		Number.isNaN(pushedAt.getTime()) ||
		(at(json, 'container') !== undefined && (manifest === undefined || path === undefined))
	) {
		return undefined;
	}

	return {
		source,
		...(manifest === undefined || path === undefined ? {} : {container: {manifest, path}}),
		digest,
		size,
		pushedAt,
		changedAt: changedAt === undefined || Number.isNaN(changedAt.getTime()) ? undefined : changedAt,
	};
}

export interface KnownVersion {
	readonly volume: Volume;
	readonly origin: Origin;
}

/** The versions of an image whose content is known for sure, newest first. */
export async function readKnownVersions(
	session: LibvirtStorage,
	pool: string,
	stem: string,
	volumes: readonly Volume[],
	signal: AbortSignal,
): Promise<readonly KnownVersion[]> {
	const versions = volumes.filter(({name}) => readImageVersion(name) !== undefined && imageStem(name) === stem);
	const known = versions.map(async volume => ({
		volume,
		origin: await readOrigin(session, pool, volume, volumes, signal),
	}));
	return (await Promise.all(known))
		.filter(
			(each): each is KnownVersion =>
				each.origin?.changedAt !== undefined &&
				each.origin.changedAt.getTime() === each.volume.modifiedAt?.getTime(),
		)
		.toSorted((a, b) => b.origin.pushedAt.getTime() - a.origin.pushedAt.getTime());
}

/** Succeeds if there is none. */
export async function deleteOrigin(
	session: LibvirtStorage,
	pool: string,
	version: string,
	signal: AbortSignal,
): Promise<void> {
	if (readImageVersion(version) !== undefined) {
		await deleteVolume(session, {pool}, originName(version), signal);
	}
}

/** Removes the origins whose version is gone: other programs remove versions, too. */
export async function removeStrayOrigins(
	session: LibvirtStorage,
	pool: string,
	volumes: readonly Volume[],
	signal: AbortSignal,
): Promise<void> {
	const wanted = new Set(volumes.filter(volume => !isOrigin(volume)).map(({name}) => originName(name)));
	for (const {name} of volumes.filter(volume => isOrigin(volume) && !wanted.has(volume.name))) {
		await deleteVolume(session, {pool}, name, signal);
	}
}

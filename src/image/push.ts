/**
 * Uploads an image as a volume of the pool, without an intermediate copy:
 *
 *   check ──▶ create an empty volume ──▶ write the note ──▶ write all except the first 64 KiB ──▶ read back
 *         ──▶ write the first 64 KiB, read back ──▶ wait until libvirt sees the image
 *
 * The last write makes the volume an image. Until then it is a raw volume whose note says that it is incomplete
 * (pusher.ts), even if this process, the connection or libvirt fails. The exception is a power failure of the host,
 * which may keep a later write and lose an earlier one: libvirt has no call to flush a volume. So a volume that looks
 * like an image is complete, and its name never has to change.
 */
import {createHash} from 'node:crypto';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {isLibvirtError, LibvirtConnectionError, LibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type StoragePool} from '../libvirt/wire/procedures.ts';
import {inOnePiece} from '../libvirt/streams.ts';
import type {Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {checkBootRecord, headBytes, readImageFormat, type ImageFormat} from '../vm-image/judgement.ts';
import {imageStem, imageVersionName} from '../vm-image/version-name.ts';
import {removeAbandoned} from './incomplete.ts';
import {checkName, pointAliasAt, untilSeen} from './name.ts';
import {thisPusher, writeNote, type Pusher} from './pusher.ts';
import {readKnownVersions, removeStrayOrigins, writeOrigin, type KnownVersion, type Origin} from './origin.ts';
import {checkIsWhole} from './qcow2.ts';
import type {ImageSource, OpenImage} from './source.ts';
import {volumeXml} from '../libvirt/storage/volume-xml.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';
import {change} from '../libvirt/change.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {openPool, readHoldings, type LibvirtStorage, type Volume} from './volumes.ts';

export interface PushOptions {
	readonly session: LibvirtStorage;
	readonly pool: string;
	/** LIBVIRT_VOL_NAME: the new volume is a version of it. */
	readonly name: string;
	/** Whether the alias is pointed to the new version at the end. */
	readonly givesName: boolean;
	readonly source: ImageSource;
	readonly onProgress: (progress: PushProgress) => void;
	readonly log: Logger;
	readonly clock?: () => Date;
	/** Whether a version with the same content is used instead of making another one; true if absent. */
	readonly reuses?: boolean;
	/** The owner in the note of an incomplete volume; this process if absent. */
	readonly pusher?: Pusher;
}

export interface PushProgress {
	readonly stage: 'comparing' | 'uploading' | 'checking';
	/** Bytes. */
	readonly done: bigint;
	readonly total: bigint;
}

export interface PushedImage extends ImageFormat {
	readonly volume: string;
	/** The source, as precisely as known. */
	readonly source: string;
	/** Bytes. */
	readonly size: bigint;
	/** Digest of the bytes, `sha256:…`. */
	readonly digest: string;
	/** Names of removed leftovers of earlier pushes. */
	readonly removed: readonly string[];
	/** The origin of the version, if it was there before. */
	readonly reused?: Origin;
}

/** Time limit to remove the volume of a failed push, independent of the signal of its caller. */
const rollBackTimeoutMs = 60_000;
/** Pause before the removal is retried on a new connection. */
const rollBackRetryMs = 500;
/** Version names contain the time in seconds. After a name conflict with another push, wait for the next second. */
const nameAttempts = 5;

/**
 * After a failure or abort nothing is left; the next push removes the leftovers of a killed process.
 * @throws AdaptorError
 */
export async function pushImage(options: PushOptions, signal: AbortSignal): Promise<PushedImage> {
	const {session, name, givesName, source, log} = options;
	const now = options.clock ?? (() => new Date());
	const {pool, availableBytes} = await openPool(session, options.pool, signal, true);
	const holdings = await readHoldings(session, pool, signal);
	if (givesName) {
		// Checked before the transfer.
		checkName(name, holdings);
	}

	const stem = imageStem(name);
	const removed = await removeAbandoned(session, pool, holdings, stem, now(), signal);
	await removeStrayOrigins(session, pool.name, holdings.volumes, signal);
	const known =
		options.reuses === false ? [] : await readKnownVersions(session, pool.name, stem, holdings.volumes, signal);
	await using image = await source.open(signal);
	const same = await findSame(known, image, options.onProgress);
	if (same !== undefined) {
		return await reuse(options, pool, same, image, removed, signal);
	}

	const bytes = new Bytes(image);
	const head = await bytes.take(headBytes);
	const format = readImageFormat(head, image.size);
	if (format.format === 'qcow2' && image.readAt !== undefined) {
		await checkIsWhole(head, image.size, image.readAt);
	}

	// A registry sends its bytes in order: the boot record of a qcow2 image is read from the volume before the volume
	// becomes an image.
	const isJudgedFromVolume = format.format === 'qcow2' && image.readAt === undefined;
	if (!isJudgedFromVolume) {
		await checkBootRecord(format.format, head, image.readAt ?? (async () => Buffer.alloc(0)));
	}

	if (image.size > availableBytes) {
		throw new AdaptorError({
			code: 'resource-exhausted',
			what: 'Could not push the image: the storage pool does not have enough space',
			where: {pool: pool.name, neededBytes: String(image.size), availableBytes: String(availableBytes)},
			remedy: 'Free some space: "cloud-api-adaptor image prune" removes old versions.',
		});
	}

	await using undo = new AsyncDisposableStack();
	const volume = await makeVolume(
		session,
		pool,
		image.size,
		() => imageVersionName(stem, now(), format.format),
		log,
		signal,
	);
	undo.defer(async () => removeUnfinished(session, pool, volume, log));
	const digest = await upload(options, volume, head, bytes, image.size, signal);
	// Only now the content of a file in a container image is known.
	const uploaded = known.find(({origin}) => origin.digest === digest);
	if (uploaded !== undefined) {
		return await reuse(options, pool, uploaded, image, removed, signal);
	}

	if (isJudgedFromVolume) {
		await checkBootRecord(format.format, head, async (at, length) =>
			readUploaded(session, pool.name, volume, head, at, length, signal),
		);
	}

	const version = await complete(session, pool, volume, head, format, signal);
	undo.move();
	const origin: Origin = {
		source: source.name,
		...present({container: image.container}),
		digest,
		size: Number(image.size),
		pushedAt: now(),
		changedAt: version.modifiedAt,
	};
	try {
		await writeOrigin(session, pool, volume, origin, signal);
	} catch (error) {
		signal.throwIfAborted();
		// The image itself is complete.
		log.warn({pool: pool.name, volume, err: error}, 'could not record where the image came from');
	}

	await giveName(options, pool, version, signal);
	return {...format, volume, source: image.name, size: image.size, digest, removed};
}

/** The version with the content of the image, as far as that can be told without a transfer. */
async function findSame(
	known: readonly KnownVersion[],
	image: OpenImage,
	onProgress: PushOptions['onProgress'],
): Promise<KnownVersion | undefined> {
	const {container, readAt, size} = image;
	if (container !== undefined) {
		return known.find(
			({origin}) => origin.container?.manifest === container.manifest && origin.container.path === container.path,
		);
	}

	if (readAt === undefined || !known.some(({origin}) => BigInt(origin.size) === size)) {
		return undefined;
	}

	const hash = createHash('sha256');
	let done = 0n;
	for await (const chunk of image.chunks()) {
		hash.update(chunk);
		done += BigInt(chunk.length);
		onProgress({stage: 'comparing', done, total: size});
	}

	const digest = `sha256:${hash.digest('hex')}`;
	return known.find(({origin}) => origin.digest === digest);
}

async function reuse(
	options: PushOptions,
	pool: StoragePool,
	{volume, origin}: KnownVersion,
	image: OpenImage,
	removed: readonly string[],
	signal: AbortSignal,
): Promise<PushedImage> {
	await giveName(options, pool, volume, signal);
	return {
		format: volume.format === 'qcow2' ? 'qcow2' : 'raw',
		virtualSize: volume.capacity,
		volume: volume.name,
		source: image.name,
		size: BigInt(origin.size),
		digest: origin.digest,
		removed,
		reused: origin,
	};
}

/** Points the alias to the version, if that is asked for. */
async function giveName(
	{session, name, givesName}: PushOptions,
	pool: StoragePool,
	version: Volume,
	signal: AbortSignal,
): Promise<void> {
	if (!givesName) {
		return;
	}

	try {
		checkName(name, await readHoldings(session, pool, signal));
		await pointAliasAt(session, pool, name, version, signal);
	} catch (error) {
		throw error instanceof AdaptorError && !signal.aborted ? withVersion(error, version.name) : error;
	}
}

/** The error says that the transferred version is kept. */
function withVersion({code, what, where, remedy = ''}: AdaptorError, volume: string): AdaptorError {
	return new AdaptorError({
		code,
		what,
		where: {...where, version: volume},
		remedy: `${remedy} The new version itself is complete: "cloud-api-adaptor image use ${volume}" points the alias to it.`.trim(),
	});
}

async function makeVolume(
	session: LibvirtStorage,
	pool: StoragePool,
	size: bigint,
	newName: () => string,
	log: Logger,
	signal: AbortSignal,
): Promise<string> {
	return retry(
		async () => {
			const name = newName();
			try {
				// Raw, even for qcow2: otherwise libvirt would create a valid empty image.
				await change(
					session,
					procedures.storageVolCreateXml,
					{pool, xml: volumeXml(name, 'raw', size), flags: 0},
					signal,
				);
				return name;
			} catch (error) {
				if (!(error instanceof LibvirtError)) {
					// Without an answer, the volume may exist. It is ours: otherwise the answer would have been an
					// error.
					await removeUnfinished(session, pool, name, log);
				}

				throw error;
			}
		},
		{
			backOff: [1000, 1000],
			// Names contain the second.
			leastPauseMs: () => 1000,
			onFailure(error, {attempt}) {
				if (!isLibvirtError(error, libvirtCode.storageVolExist) || attempt === nameAttempts) {
					throw error;
				}
			},
		},
		signal,
	);
}

/**
 * Writes everything except the head, and reads it back.
 * @returns the digest of the whole image
 */
async function upload(
	{session, pool, onProgress, pusher}: PushOptions,
	volume: string,
	head: Buffer,
	bytes: Bytes,
	size: bigint,
	signal: AbortSignal,
): Promise<string> {
	const note = writeNote(pusher ?? (await thisPusher()));
	// The volume is new, so unwritten parts are zero.
	const range = {offset: head.length, length: size - BigInt(head.length), isSparse: true};
	const sent = createHash('sha256').update(head);
	if (range.length === 0n) {
		await bytes.end();
		return `sha256:${sent.digest('hex')}`;
	}

	await session.upload(volumeOf(pool, volume), inOnePiece(note), {offset: 0, length: note.length}, signal);
	let done = BigInt(head.length);
	const tell = (stage: PushProgress['stage'], chunk: Buffer): void => {
		done += BigInt(chunk.length);
		onProgress({stage, done, total: size});
	};

	await session.upload(
		volumeOf(pool, volume),
		(async function* () {
			for await (const chunk of bytes.rest()) {
				sent.update(chunk);
				tell('uploading', chunk);
				yield chunk;
			}
		})(),
		range,
		signal,
	);

	const found = createHash('sha256').update(head);
	done = BigInt(head.length);
	for await (const chunk of session.download(volumeOf(pool, volume), range, signal)) {
		found.update(chunk);
		tell('checking', chunk);
	}

	const digest = sent.digest('hex');
	if (found.digest('hex') !== digest || done !== size) {
		throw notWhatWasWritten(pool, volume);
	}

	return `sha256:${digest}`;
}

/** For a volume with everything except its head. */
async function readUploaded(
	session: LibvirtStorage,
	pool: string,
	volume: string,
	head: Buffer,
	at: bigint,
	length: number,
	signal: AbortSignal,
): Promise<Buffer> {
	const chunks = at < BigInt(head.length) ? [head.subarray(Number(at), Number(at) + length)] : [];
	const missing = length - (chunks[0]?.length ?? 0);
	if (missing > 0) {
		for await (const chunk of session.download(
			volumeOf(pool, volume),
			{offset: at + BigInt(length - missing), length: missing},
			signal,
		)) {
			chunks.push(chunk);
		}
	}

	return Buffer.concat(chunks);
}

function notWhatWasWritten(pool: string, volume: string): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: 'Could not push the image: the data read back from the volume differs from the written data',
		where: {pool, volume},
		remedy: 'Look at the storage of the KVM host and its log, then push again.',
	});
}

/** From now on the volume is an image. */
async function complete(
	session: LibvirtStorage,
	pool: StoragePool,
	volume: string,
	head: Buffer,
	{format, virtualSize}: ImageFormat,
	signal: AbortSignal,
): Promise<Volume> {
	await session.upload(volumeOf(pool.name, volume), inOnePiece(head), {offset: 0, length: head.length}, signal);
	const found = createHash('sha256');
	for await (const chunk of session.download(volumeOf(pool.name, volume), {length: head.length}, signal)) {
		found.update(chunk);
	}

	if (!found.digest().equals(createHash('sha256').update(head).digest())) {
		throw notWhatWasWritten(pool.name, volume);
	}

	return untilSeen(
		session,
		pool,
		volume,
		seen => seen.format === format && seen.capacity === virtualSize && seen.backingPath === undefined,
		signal,
	);
}

/** Never throws: the caller gets the failure that led here. */
async function removeUnfinished(
	session: LibvirtStorage,
	pool: StoragePool,
	volume: string,
	log: Logger,
): Promise<void> {
	using scope = new Scope().deadline(rollBackTimeoutMs, 'the clean-up after a failed push');
	try {
		await retry(
			async () => deleteVolume(session, {pool: pool.name}, volume, scope.signal),
			{
				backOff: [rollBackRetryMs, rollBackRetryMs],
				onFailure(error) {
					// The failure may have ended all connections, and some have not noticed it yet.
					if (!(error instanceof LibvirtConnectionError)) {
						throw error;
					}
				},
			},
			scope.signal,
		);
	} catch (error) {
		// Only this is logged for the operator: something is left.
		log.error(
			{pool: pool.name, volume, err: error},
			'could not remove an incomplete image; the next push or prune will remove it',
		);
	}
}

/** The bytes of the image, with its first ones separate. Checks their number. */
class Bytes {
	readonly #size: bigint;
	readonly #chunks: AsyncGenerator<Buffer, void, undefined>;
	#ahead: Buffer = Buffer.alloc(0);
	#received = 0n;

	constructor({size, chunks}: OpenImage) {
		this.#size = size;
		this.#chunks = chunks();
	}

	async take(length: number): Promise<Buffer> {
		const parts: Buffer[] = [];
		let received = 0;
		while (received < length) {
			const chunk = await this.#next();
			if (chunk === undefined) {
				break;
			}

			parts.push(chunk);
			received += chunk.length;
		}

		const all = Buffer.concat(parts);
		this.#ahead = all.subarray(length);
		return all.subarray(0, length);
	}

	async *rest(): AsyncGenerator<Buffer, void, undefined> {
		if (this.#ahead.length > 0) {
			yield this.#ahead;
		}

		for (let chunk = await this.#next(); chunk !== undefined; chunk = await this.#next()) {
			yield chunk;
		}
	}

	/** Reads to the end, where the source verifies its bytes. */
	async end(): Promise<void> {
		while ((await this.#next()) !== undefined) {
			// No more data is expected: `#next` refuses extra bytes.
		}
	}

	async #next(): Promise<Buffer | undefined> {
		const next = await this.#chunks.next();
		this.#received += BigInt(next.done === true ? 0 : next.value.length);
		if (next.done === true ? this.#received !== this.#size : this.#received > this.#size) {
			throw new AdaptorError({
				code: 'data-loss',
				what: 'Could not read the image: its size differs from the announced size',
				where: {expectedBytes: String(this.#size), receivedBytes: String(this.#received)},
			});
		}

		return next.done === true ? undefined : next.value;
	}
}

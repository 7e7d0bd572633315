/**
 * Extracts one file from the layers of a container image without unpacking them: reads the layers from the top down,
 * each once, as a stream. Never writes to a path from an archive. Source: OCI image-spec, layer.md ("Whiteouts",
 * "Opaque Whiteout").
 */
import {createGunzip, createZstdDecompress} from 'node:zlib';
import {AdaptorError, toError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import {TarDecoder, type TarEntry} from './tar.ts';

/** Bytes; opened once. Rejects at the end if they do not match the digest. */
export type OpenLayer = () => AsyncGenerator<Buffer, void, undefined>;

export interface FoundFile {
	/** Bytes. */
	readonly size: bigint;
	/**
	 * Read it once, to the end. The rest of the layer after the file is read too, because only then its digest is
	 * verified.
	 * @throws AdaptorError 'data-loss' for a damaged archive
	 */
	chunks(): AsyncGenerator<Buffer, void, undefined>;
}

/** Size limit of an unpacked layer. The data is only read, so a decompression bomb costs time but no disk space. */
const maxLayerBytes = 2 ** 40;
const whiteout = '.wh.';
const opaqueWhiteout = '.wh..wh..opq';
const gzipMagic = Buffer.from([0x1f, 0x8b]);
const zstdMagic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);
/**
 * Frames without data, with which layers of pzstd begin; the last four bits may have any value (RFC 8878, section
 * 3.1.2).
 */
const zstdSkippable = 0x18_4d_2a_50;

/**
 * Disposing closes the current layer.
 * @param layers lowest first
 * @param path without leading slash
 * @throws AdaptorError 'not-found'; 'failed-precondition' if the path leads through a link
 */
export async function findInLayers(
	layers: readonly OpenLayer[],
	path: string,
	limit = maxLayerBytes,
): Promise<FoundFile & AsyncDisposable> {
	for (const open of layers.toReversed()) {
		const layer = new LayerReader(open(), path, limit);
		let isHanded = false;
		try {
			const size = await layer.find();
			if (size !== undefined) {
				isHanded = true;
				return {
					size: BigInt(size),
					chunks: () => layer.read(),
					[Symbol.asyncDispose]: async () => layer.close(),
				};
			}

			if (layer.hidesWhatIsBelow) {
				break;
			}
		} finally {
			if (!isHanded) {
				await layer.close();
			}
		}
	}

	throw new AdaptorError({
		code: 'not-found',
		what: 'Could not find the pod VM image in the container image: no layer has such a file',
		where: {path: `/${path}`},
		remedy: 'Append its path to the reference: oci::REPOSITORY:TAG::/image/podvm.qcow2.',
	});
}

/** Reads an archive through the decoder: never more than requested. */
class LayerReader {
	readonly #path: string;
	readonly #limit: number;
	readonly #blob: Blob;
	readonly #archive: AsyncGenerator<Buffer, void, undefined>;
	readonly #tar = new TarDecoder();
	#ended = false;
	#unpacked = 0;
	#size: number | undefined;
	/** Decoded bytes of the file that were not read yet. */
	#data: Buffer[] = [];
	/** Whether the current data belongs to the file. */
	#isInFile = false;
	/** No lower layer can contain the file. */
	hidesWhatIsBelow = false;

	constructor(blob: AsyncGenerator<Buffer, void, undefined>, path: string, limit: number) {
		this.#blob = new Blob(blob);
		this.#archive = unpacked(this.#blob);
		this.#path = path;
		this.#limit = limit;
	}

	/** The size of the file, if this layer contains it; reads no more of its data than necessary. */
	async find(): Promise<number | undefined> {
		while (this.#size === undefined && !this.#ended) {
			await this.#advance();
		}

		return this.#size;
	}

	/** The data of the file, then the rest of the layer. */
	async *read(): AsyncGenerator<Buffer, void, undefined> {
		for (;;) {
			yield* this.#data.splice(0);
			if (this.#ended) {
				return;
			}

			await this.#advance();
		}
	}

	async close(): Promise<void> {
		await this.#archive.return();
		await this.#blob.close();
	}

	/** Decodes one more chunk, or records the end. */
	async #advance(): Promise<void> {
		const next = await this.#archive.next().catch((error: unknown) => {
			throw error instanceof AdaptorError ? error : damaged(toError(error).message, error);
		});
		if (next.done === true) {
			// A decompressor stops at the end of the archive; the digest of the blob is verified at its very end.
			while ((await this.#blob.next()) !== undefined) {
				// Read only for the digest.
			}

			this.#tar.end();
			this.#ended = true;
			return;
		}

		this.#unpacked += next.value.length;
		if (this.#unpacked > this.#limit) {
			throw damaged(`unpacked it has more than ${this.#limit} bytes`);
		}

		for (const part of this.#tar.push(next.value)) {
			if ('entry' in part) {
				this.#isInFile = this.#isFile(part.entry);
			} else if (this.#isInFile) {
				this.#data.push(part.data);
			}
		}
	}

	/** Records the effect of the entry on the file. */
	#isFile({name, type, size}: TarEntry): boolean {
		const path = this.#path;
		const entry = normalName(name);
		const [directory, base] = split(entry);
		if (base === opaqueWhiteout) {
			this.hidesWhatIsBelow ||= isWithin(path, directory);
		} else if (base.startsWith(whiteout) && base !== whiteout) {
			const removed = `${directory === '' ? '' : `${directory}/`}${base.slice(whiteout.length)}`;
			this.hidesWhatIsBelow ||= path === removed || isWithin(path, removed);
		} else if (entry === path && type === 'file') {
			if (this.#size !== undefined) {
				throw damaged('it contains the file twice');
			}

			this.#size = size;
			return true;
		} else if (entry === path || (entry !== '' && isWithin(path, entry))) {
			if (type === 'link' || type === 'sparse') {
				throw new AdaptorError({
					code: 'failed-precondition',
					what: `Could not take the pod VM image out of the container image: ${type === 'link' ? 'its path is a link or contains a link' : 'it is archived as a sparse file'}`,
					where: {path: `/${path}`, entry: `/${entry}`},
					remedy:
						type === 'link'
							? 'Name the path of the file itself.'
							: 'Build the container image with a tool that does not create sparse archives.',
				});
			}

			// Another kind of entry at the path, or a file at the path of its directory.
			this.hidesWhatIsBelow ||= entry === path || type !== 'directory';
		}

		return false;
	}
}

/**
 * Decompresses according to the first bytes; media types are often wrong. Leaves the blob open, possibly before its
 * end.
 */
async function* unpacked(blob: Blob): AsyncGenerator<Buffer, void, undefined> {
	let rest: Buffer = Buffer.alloc(0);
	while (rest.length < zstdMagic.length) {
		const next = await blob.next();
		if (next === undefined) {
			break;
		}

		rest = Buffer.concat([rest, next]);
	}

	if (rest.subarray(0, gzipMagic.length).equals(gzipMagic)) {
		yield* unpackedBy(createGunzip(), rest, blob);
		return;
	}

	const isZstd =
		rest.subarray(0, zstdMagic.length).equals(zstdMagic) ||
		(rest.length >= zstdMagic.length && (rest.readUInt32LE(0) & 0xff_ff_ff_f0) === zstdSkippable);
	if (!isZstd) {
		for (let next: Buffer | undefined = rest; next !== undefined; next = await blob.next()) {
			yield next;
		}

		return;
	}

	// Tools that create or fetch layers in parallel (pzstd, zstd:chunked) write many frames; the decompressor of Node
	// stops at the first frame that ends within a chunk.
	while (rest.length > 0) {
		rest = yield* unpackedBy(createZstdDecompress(), rest, blob);
	}
}

type Unpacker = ReturnType<typeof createGunzip> | ReturnType<typeof createZstdDecompress>;

/** @returns the bytes of the blob after the end of the compressed data that were already read */
async function* unpackedBy(unpacker: Unpacker, head: Buffer, blob: Blob): AsyncGenerator<Buffer, Buffer, undefined> {
	// Errors of a write after the reader has ended are ignored.
	let wake: (value: undefined) => void = () => undefined;
	unpacker.once('close', () => wake(undefined));
	const feed = async (): Promise<Buffer> => {
		let fed = 0;
		for (let chunk: Buffer | undefined = head; chunk !== undefined; chunk = await blob.next()) {
			const {promise, resolve} = Promise.withResolvers<undefined>();
			wake = resolve;
			unpacker.write(chunk, () => resolve(undefined));
			await promise;
			fed += chunk.length;
			if (unpacker.bytesWritten < fed) {
				return chunk.subarray(chunk.length - (fed - unpacker.bytesWritten));
			}
		}

		unpacker.end();
		return Buffer.alloc(0);
	};

	const feeding = feed().catch((error: unknown) => {
		unpacker.destroy(toError(error));
		return Buffer.alloc(0);
	});
	try {
		yield* unpacker as AsyncIterable<Buffer>;
		return await feeding;
	} finally {
		unpacker.destroy();
		await feeding;
	}
}

/**
 * The chunks of a blob; undefined at the end. Each later read returns the same error, because the first reader may be a
 * decompressor that has already ended and ignores it.
 */
class Blob {
	readonly #chunks: AsyncGenerator<Buffer, void, undefined>;
	#failure: {readonly error: unknown} | undefined;

	constructor(chunks: AsyncGenerator<Buffer, void, undefined>) {
		this.#chunks = chunks;
	}

	async next(): Promise<Buffer | undefined> {
		if (this.#failure !== undefined) {
			throw toError(this.#failure.error);
		}

		try {
			const next = await this.#chunks.next();
			return next.done === true ? undefined : next.value;
		} catch (error) {
			this.#failure = {error};
			throw error;
		}
	}

	async close(): Promise<void> {
		await this.#chunks.return();
	}
}

/** The path without `./`, slashes at the ends, and empty parts. A path with `..` is invalid here. */
function normalName(name: string): string {
	return name
		.split('/')
		.filter(part => part !== '' && part !== '.')
		.join('/');
}

function split(name: string): readonly [directory: string, base: string] {
	const at = name.lastIndexOf('/');
	return at === -1 ? ['', name] : [name.slice(0, at), name.slice(at + 1)];
}

/** Whether the path is below the directory; everything is below the root, `''`. */
function isWithin(path: string, directory: string): boolean {
	return directory === '' || path.startsWith(`${directory}/`);
}

function damaged(why: string, cause?: unknown): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: `Could not read a layer of the container image: ${why}`,
		remedy: 'Push the container image to the registry again.',
		...present({cause}),
	});
}

/**
 * One file out of the layers of a container image, as the file system that they make would show it, without making it: layers are read from the
 * uppermost down, each once, as a stream. Nothing is ever written by a name of an archive.
 * Source: OCI image-spec, layer.md ("Whiteouts", "Opaque Whiteout").
 */
import {Readable, type Transform} from 'node:stream';
import {pipeline} from 'node:stream/promises';
import {createGunzip, createZstdDecompress} from 'node:zlib';
import {AdaptorError, toError} from '../errors.ts';
import {TarDecoder, type TarEntry} from './tar.ts';

/** Bytes; opened once. Rejects at its end if they were not what they should be. */
export type OpenLayer = () => AsyncGenerator<Buffer, void, undefined>;

export interface FoundFile {
	/** Bytes. */
	readonly size: bigint;
	/**
	 * Once, to the end. What is behind the file in its layer is read too: the layer is proven only then.
	 * @throws AdaptorError 'data-loss' for an archive that is damaged
	 */
	chunks(): AsyncGenerator<Buffer, void, undefined>;
}

/** Of a layer, unpacked: a bomb takes time, never space. */
const maxLayerBytes = 2 ** 40;
const whiteout = '.wh.';
const opaqueWhiteout = '.wh..wh..opq';
const gzipMagic = Buffer.from([0x1f, 0x8b]);
const zstdMagic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);

/**
 * Disposing closes the layer that is being read.
 * @param layers lowest first
 * @param path without leading slash
 * @throws AdaptorError 'not-found'; 'failed-precondition' when the path leads through a link
 */
export async function findInLayers(layers: readonly OpenLayer[], path: string, limit = maxLayerBytes): Promise<FoundFile & AsyncDisposable> {
	for (const open of layers.toReversed()) {
		const layer = new LayerReader(open(), path, limit);
		let isHanded = false;
		try {
			const size = await layer.find();
			if (size !== undefined) {
				isHanded = true;
				return {size: BigInt(size), chunks: () => layer.read(), [Symbol.asyncDispose]: async () => layer.close()};
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
		remedy: 'Name its path behind the reference: oci::REPOSITORY:TAG::/image/podvm.qcow2.',
	});
}

/** Pulls an archive through the decoder: no more is read than is asked for. */
class LayerReader {
	readonly #path: string;
	readonly #limit: number;
	readonly #blob: AsyncGenerator<Buffer, void, undefined>;
	readonly #archive: AsyncGenerator<Buffer, void, undefined>;
	readonly #tar = new TarDecoder();
	#ended = false;
	#unpacked = 0;
	#size: number | undefined;
	/** Of the file, decoded and not yet taken. */
	#data: Buffer[] = [];
	/** Whether the data that is being decoded is the file's. */
	#isInFile = false;
	/** No layer below this one can show the file. */
	hidesWhatIsBelow = false;

	constructor(blob: AsyncGenerator<Buffer, void, undefined>, path: string, limit: number) {
		this.#blob = blob;
		this.#archive = unpacked(blob);
		this.#path = path;
		this.#limit = limit;
	}

	/** The file's size, if this layer has it; not more of its data is read than came along. */
	async find(): Promise<number | undefined> {
		while (this.#size === undefined && !this.#ended) {
			await this.#advance();
		}

		return this.#size;
	}

	/** The file's data, then the rest of the layer. */
	async* read(): AsyncGenerator<Buffer, void, undefined> {
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
		await this.#blob.return();
	}

	/** Decodes one more chunk, or notes the end. */
	async #advance(): Promise<void> {
		const next = await this.#archive.next().catch((error: unknown) => {
			throw error instanceof AdaptorError ? error : damaged(toError(error).message, error);
		});
		if (next.done === true) {
			// An unpacker stops where the archive does; the proof of the blob comes at its very end.
			for (let more = await this.#blob.next(); more.done !== true; more = await this.#blob.next()) {
				// Read for its digest only.
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

	/** Notes what the entry means for the file. */
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
				throw damaged('it has the file twice');
			}

			this.#size = size;
			return true;
		} else if (entry === path || (entry !== '' && isWithin(path, entry))) {
			if (type === 'link' || type === 'sparse') {
				throw new AdaptorError({
					code: 'failed-precondition',
					what: `Could not take the pod VM image out of the container image: ${type === 'link' ? 'its path is, or leads through, a link' : 'it is archived as a sparse file'}`,
					where: {path: `/${path}`, entry: `/${entry}`},
					remedy: type === 'link' ? 'Name the path of the file itself.' : 'Build the container image with a tool that archives the file whole.',
				});
			}

			// Something else in the place of the file, or a file in the place of its directory.
			this.hidesWhatIsBelow ||= entry === path || type !== 'directory';
		}

		return false;
	}
}

/** Unpacks what its first bytes say it is; media types are often wrong. Leaves the blob open. */
async function* unpacked(blob: AsyncGenerator<Buffer, void, undefined>): AsyncGenerator<Buffer, void, undefined> {
	let head: Buffer = Buffer.alloc(0);
	while (head.length < zstdMagic.length) {
		const next = await blob.next();
		if (next.done === true) {
			break;
		}

		head = Buffer.concat([head, next.value]);
	}

	const packed = withHead(head, blob);
	const starts = (magic: Buffer): boolean => head.subarray(0, magic.length).equals(magic);
	const unpacker: Transform | undefined = starts(gzipMagic) ? createGunzip() : starts(zstdMagic) ? createZstdDecompress() : undefined;
	if (unpacker === undefined) {
		yield* packed;
		return;
	}

	// Its failure is that of the reader below as well.
	const feeding = pipeline(Readable.from(packed), unpacker).catch(() => undefined);
	try {
		yield* unpacker as AsyncIterable<Buffer>;
	} finally {
		unpacker.destroy();
		await feeding;
	}
}

/** Without a `return` of its own, so that who stops early does not close the blob. */
async function* withHead(head: Buffer, blob: AsyncGenerator<Buffer, void, undefined>): AsyncGenerator<Buffer, void, undefined> {
	yield head;
	for (let next = await blob.next(); next.done !== true; next = await blob.next()) {
		yield next.value;
	}
}

/** As the path is written: without `./`, slashes at the ends, empty parts. A name that goes upwards is no path here. */
function normalName(name: string): string {
	return name.split('/').filter(part => part !== '' && part !== '.').join('/');
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
		...(cause === undefined ? {} : {cause}),
	});
}

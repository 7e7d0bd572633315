/**
 * A container image in an archive of the OCI layout, as `image pack`, `podman save --format oci-archive` and skopeo
 * write it. Answers like a registry. Reads the parts where they are; nothing is unpacked. Source: OCI image-spec,
 * image-layout.md.
 */
import {createHash} from 'node:crypto';
import {AdaptorError} from '../core/errors.ts';
import {at as memberAt} from '../core/json.ts';
import {present} from '../core/present.ts';
import {
	checkPlatform,
	chooseOf,
	configOf,
	layersOf,
	parseDocument,
	type Descriptor,
	type ImageManifest,
	type Platform,
} from './manifest.ts';
import {findInLayers} from './layers.ts';
import {defaultImagePath} from './reference.ts';
import {fileSource, type ImageSource, type ReadableFile} from './source.ts';
import {TarDecoder} from './tar.ts';

const blockBytes = 512;
/** As for documents of a registry. */
const maxDocumentBytes = 4 * 1024 * 1024;
const chunkBytes = 1024 * 1024;

interface Place {
	readonly at: bigint;
	readonly size: number;
}

/** An archive of the OCI layout. */
export function archiveSource(path: string, platform: Platform, imagePath = defaultImagePath): ImageSource {
	return {
		name: path,
		async open(signal) {
			await using undo = new AsyncDisposableStack();
			const file = undo.use(await fileSource(path).open(signal));
			const archive = await OciArchive.read(file);
			const manifest = await archive.manifest(platform);
			const found = undo.use(
				await findInLayers(
					manifest.layers.map(layer => () => archive.blob(layer)),
					imagePath,
				),
			);
			const owned = undo.move();
			return {
				name: `${path}::/${imagePath}`,
				container: {manifest: manifest.digest, path: imagePath},
				size: found.size,
				chunks: () => found.chunks(),
				[Symbol.asyncDispose]: async () => owned.disposeAsync(),
			};
		},
	};
}

/** Whether the file is an archive, of whatever kind. @throws AdaptorError if it cannot be read */
export async function isArchive(path: string, signal: AbortSignal): Promise<boolean> {
	await using file = await fileSource(path).open(signal);
	return (await file.readAt(0n, blockBytes)).toString('latin1', 257, 262) === 'ustar';
}

class OciArchive {
	readonly #file: ReadableFile;
	readonly #entries: ReadonlyMap<string, Place>;

	private constructor(file: ReadableFile, entries: ReadonlyMap<string, Place>) {
		this.#file = file;
		this.#entries = entries;
	}

	/** @throws AdaptorError 'data-loss' for a damaged archive, 'failed-precondition' for one of another kind */
	static async read(file: ReadableFile): Promise<OciArchive> {
		const archive = new OciArchive(file, await entriesOf(file));
		if (!archive.#entries.has('index.json')) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'Could not read the archive: it has no index.json, so it is no OCI archive',
				where: {path: file.name},
				remedy: 'Save the container image with "podman save --format oci-archive", or pack the disk image with "cloud-api-adaptor image pack".',
			});
		}

		return archive;
	}

	/** As `Registry.manifest`. */
	async manifest(platform: Platform): Promise<ImageManifest> {
		const where = {path: this.#file.name};
		let content = parseDocument(await this.#document('index.json'), 'index.json', where);
		let digest: string | undefined;
		// A list in the list is how `docker buildx` writes it.
		for (let depth = 0; depth < 3; depth++) {
			const list = memberAt(content, 'manifests');
			if (!Array.isArray(list)) {
				break;
			}

			digest = chooseOf(list, platform, where);
			content = parseDocument(await this.#verified(digest), 'the manifest', where);
		}

		if (digest === undefined) {
			throw damaged(this.#file.name, 'its index.json lists no manifest');
		}

		const layers = layersOf(content, where);
		const config = await this.#verified(configOf(content, where).digest);
		checkPlatform(parseDocument(config, 'the configuration', where), platform, where);
		return {digest, layers};
	}

	/** @throws AdaptorError 'data-loss' at the end for a wrong digest */
	async *blob({digest, size}: Descriptor): AsyncGenerator<Buffer, void, undefined> {
		const place = this.#place(pathOf(digest));
		if (place.size !== size) {
			throw damaged(this.#file.name, `a blob has ${place.size} bytes instead of ${size}`);
		}

		const hash = createHash(digest.slice(0, digest.indexOf(':')));
		for (let done = 0; done < size;) {
			const chunk = await this.#file.readAt(place.at + BigInt(done), Math.min(chunkBytes, size - done));
			if (chunk.length === 0) {
				throw damaged(this.#file.name, 'it is cut off');
			}

			done += chunk.length;
			hash.update(chunk);
			yield chunk;
		}

		if (hash.digest('hex') !== digest.slice(digest.indexOf(':') + 1)) {
			throw damaged(this.#file.name, 'a blob is not what its digest says');
		}
	}

	async #verified(digest: string): Promise<Buffer> {
		const {size} = this.#place(pathOf(digest));
		this.#checkSize(size);
		const chunks: Buffer[] = [];
		for await (const chunk of this.blob({digest, size})) {
			chunks.push(chunk);
		}

		return Buffer.concat(chunks);
	}

	async #document(name: string): Promise<Buffer> {
		const {at, size} = this.#place(name);
		this.#checkSize(size);
		return this.#file.readAt(at, size);
	}

	#checkSize(size: number): void {
		if (size > maxDocumentBytes) {
			throw damaged(this.#file.name, `a document in it has more than ${maxDocumentBytes} bytes`);
		}
	}

	#place(name: string): Place {
		const place = this.#entries.get(name);
		if (place === undefined) {
			throw damaged(this.#file.name, `it lacks ${name.slice(0, 200)}`);
		}

		return place;
	}
}

/** Reads the headers only. */
async function entriesOf(file: ReadableFile): Promise<ReadonlyMap<string, Place>> {
	const entries = new Map<string, Place>();
	const tar = new TarDecoder();
	try {
		for (let at = 0n; at < file.size;) {
			const block = await file.readAt(at, blockBytes);
			at += BigInt(block.length);
			for (const part of tar.push(block)) {
				if ('entry' in part && part.entry.type === 'file') {
					entries.set(part.entry.name.replace(/^\.\//v, ''), {at, size: part.entry.size});
				}
			}

			at += BigInt(tar.skip());
			if (block.length === 0) {
				break;
			}
		}

		tar.end();
	} catch (error) {
		throw error instanceof AdaptorError && error.code === 'data-loss'
			? damaged(file.name, 'it is no tar archive, or a damaged one', error)
			: error;
	}

	return entries;
}

function pathOf(digest: string): string {
	return `blobs/${digest.replace(':', '/')}`;
}

function damaged(path: string, why: string, cause?: unknown): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: `Could not read the archive: ${why}`,
		where: {path},
		remedy: 'Compare its size with the original, or make it again.',
		...present({cause}),
	});
}

/**
 * Wraps a pod VM image in a container image, in the form of an archive: one layer with the image at
 * `/image/podvm.qcow2`, as the Dockerfile of the operator does it. No engine is needed. Equal images give equal
 * archives. Sources: OCI image-spec, image-layout.md, manifest.md, config.md; moby, image/spec/v1.2.md (manifest.json,
 * for versions of docker that do not load OCI layouts); openshift/sandboxed-containers-operator,
 * config/peerpods/podvm/Dockerfile.podvm-oci.
 */
import {createHash} from 'node:crypto';
import {open, unlink, type FileHandle} from 'node:fs/promises';
import {AdaptorError, toError} from '../core/errors.ts';
import {checkBootRecord, headBytes, readImageFormat} from '../vm-image/judgement.ts';
import {checkIsWhole} from './qcow2.ts';
import {defaultImagePath} from './reference.ts';
import type {ReadableFile} from './source.ts';
import {tarEnd, tarHeader, tarPadding} from './tar-header.ts';

export interface PackOptions {
	readonly image: ReadableFile;
	/** Path of the archive. It must not exist. */
	readonly output: string;
	readonly onProgress: (progress: PackProgress) => void;
}

export interface PackProgress {
	readonly stage: 'reading' | 'writing';
	/** Bytes. */
	readonly done: bigint;
	readonly total: bigint;
}

export interface PackedImage {
	/** Digest of the manifest. */
	readonly digest: string;
	/** Bytes of the archive. */
	readonly size: number;
	/** Path of the image in the container image. */
	readonly path: string;
}

const platform = {architecture: 's390x', os: 'linux'} as const;
const mediaTypes = {
	index: 'application/vnd.oci.image.index.v1+json',
	manifest: 'application/vnd.oci.image.manifest.v1+json',
	config: 'application/vnd.oci.image.config.v1+json',
	layer: 'application/vnd.oci.image.layer.v1.tar',
} as const;

/**
 * Reads the image twice: its digest comes before it in the archive. On failure no archive is left.
 * @throws UnfitImageError for an image that `image push` refuses; AdaptorError 'already-exists' if the output exists
 */
export async function packImage({image, output, onProgress}: PackOptions): Promise<PackedImage> {
	const head = await image.readAt(0n, headBytes);
	if (readImageFormat(head, image.size).format !== 'qcow2') {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not pack the image: it is raw, and the operator takes qcow2 only',
			where: {path: image.name},
			remedy: 'Convert it with "qemu-img convert -f raw -O qcow2 -c".',
		});
	}

	await checkIsWhole(head, image.size, image.readAt);
	await checkBootRecord('qcow2', head, image.readAt);

	const layer = {parts: () => layerOf(image), size: sizeOfLayer(image)};
	const layerDigest = await digestOf(withProgress(layer.parts(), 'reading', layer.size, onProgress));
	const config = jsonOf({
		...platform,
		config: {Env: [`PODVM_IMAGE_PATH=/${defaultImagePath}`]},
		rootfs: {type: 'layers', diff_ids: [layerDigest]},
	});
	const manifest = jsonOf({
		schemaVersion: 2,
		mediaType: mediaTypes.manifest,
		config: {mediaType: mediaTypes.config, digest: config.digest, size: config.bytes.length},
		layers: [{mediaType: mediaTypes.layer, digest: layerDigest, size: layer.size}],
	});
	const index = jsonOf({
		schemaVersion: 2,
		mediaType: mediaTypes.index,
		manifests: [{mediaType: mediaTypes.manifest, digest: manifest.digest, size: manifest.bytes.length, platform}],
	});
	const small: ReadonlyArray<readonly [name: string, bytes: Buffer]> = [
		['oci-layout', jsonOf({imageLayoutVersion: '1.0.0'}).bytes],
		['index.json', index.bytes],
		[
			'manifest.json',
			jsonOf([{Config: blobPath(config.digest), RepoTags: null, Layers: [blobPath(layerDigest)]}]).bytes,
		],
		['blobs/', Buffer.alloc(0)],
		['blobs/sha256/', Buffer.alloc(0)],
		[blobPath(config.digest), config.bytes],
		[blobPath(manifest.digest), manifest.bytes],
	];
	const size = await writeNew(output, async function* () {
		for (const [name, bytes] of small) {
			yield* [tarHeader({name, size: bytes.length}), bytes, tarPadding(bytes.length)];
		}

		yield tarHeader({name: blobPath(layerDigest), size: layer.size});
		const hash = createHash('sha256');
		for await (const chunk of withProgress(layer.parts(), 'writing', layer.size, onProgress)) {
			hash.update(chunk);
			yield chunk;
		}

		if (`sha256:${hash.digest('hex')}` !== layerDigest) {
			throw new AdaptorError({
				code: 'aborted',
				what: 'Could not pack the image: it changed meanwhile',
				where: {path: image.name},
				remedy: 'Wait until nothing writes to it, and pack it again.',
			});
		}

		yield* [tarPadding(layer.size), tarEnd];
	});
	return {digest: manifest.digest, size, path: `/${defaultImagePath}`};
}

function blobPath(digest: string): string {
	return `blobs/${digest.replace(':', '/')}`;
}

async function* layerOf(image: ReadableFile): AsyncGenerator<Buffer, void, undefined> {
	const size = Number(image.size);
	yield tarHeader({name: `${defaultImagePath.slice(0, defaultImagePath.indexOf('/'))}/`, size: 0});
	yield tarHeader({name: defaultImagePath, size});
	yield* image.chunks();
	yield tarPadding(size);
	yield tarEnd;
}

function sizeOfLayer({size}: ReadableFile): number {
	const bytes = Number(size);
	return tarHeader({name: 'x', size: 0}).length * 2 + bytes + tarPadding(bytes).length + tarEnd.length;
}

function jsonOf(value: unknown): {readonly bytes: Buffer; readonly digest: string} {
	const bytes = Buffer.from(JSON.stringify(value));
	return {bytes, digest: `sha256:${createHash('sha256').update(bytes).digest('hex')}`};
}

async function digestOf(chunks: AsyncIterable<Buffer>): Promise<string> {
	const hash = createHash('sha256');
	for await (const chunk of chunks) {
		hash.update(chunk);
	}

	return `sha256:${hash.digest('hex')}`;
}

async function* withProgress(
	chunks: AsyncIterable<Buffer>,
	stage: PackProgress['stage'],
	total: number,
	onProgress: PackOptions['onProgress'],
): AsyncGenerator<Buffer, void, undefined> {
	let done = 0n;
	for await (const chunk of chunks) {
		done += BigInt(chunk.length);
		onProgress({stage, done, total: BigInt(total)});
		yield chunk;
	}
}

/** @returns the bytes that were written */
async function writeNew(path: string, chunks: () => AsyncIterable<Buffer>): Promise<number> {
	let file: FileHandle;
	try {
		file = await open(path, 'wx');
	} catch (error) {
		const exists = error instanceof Error && 'code' in error && error.code === 'EEXIST';
		throw new AdaptorError({
			code: exists ? 'already-exists' : 'failed-precondition',
			what: `Could not write the archive: ${exists ? 'the file exists' : toError(error).message}`,
			where: {path},
			remedy: 'Name another file in -o, or remove this one.',
			cause: error,
		});
	}

	await using undo = new AsyncDisposableStack();
	undo.defer(async () => unlink(path));
	await using owned = file;
	let written = 0;
	for await (const chunk of chunks()) {
		for (let at = 0; at < chunk.length;) {
			at += (await owned.write(chunk, at)).bytesWritten;
		}

		written += chunk.length;
	}

	undo.move();
	return written;
}

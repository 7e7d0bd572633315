/** The source of an image: a file, or a container image in a registry. Does not know libvirt. */
import {open} from 'node:fs/promises';
import {AdaptorError, toError} from '../core/errors.ts';
import {findInLayers} from './layers.ts';
import type {ContainerFile} from './origin.ts';
import {formatReference, type ImageReference} from './reference.ts';
import type {Platform} from './manifest.ts';
import type {Registry} from './registry.ts';

export interface ImageSource {
	/** The name for the operator: a path, or a reference, with its digest if known. */
	readonly name: string;
	/** Opens it. The caller disposes the result. */
	open(signal: AbortSignal): Promise<OpenImage>;
}

export interface OpenImage extends AsyncDisposable {
	readonly name: string;
	/** Bytes. */
	readonly size: bigint;
	/** Where the bytes are in a container image. */
	readonly container?: ContainerFile;
	/** Read to the end, where the bytes are verified; once, unless there is `readAt`. */
	readonly chunks: () => AsyncGenerator<Buffer, void, undefined>;
	/**
	 * Bytes from an offset; fewer at the end. Absent if the bytes can only be read in order: a registry verifies them
	 * that way.
	 */
	readonly readAt?: (at: bigint, length: number) => Promise<Buffer>;
}

/** A file that is read at any place, and as often as needed. */
export type ReadableFile = Required<Pick<OpenImage, 'name' | 'size' | 'chunks' | 'readAt'>>;

export interface FileSource {
	/** Its path. */
	readonly name: string;
	open(signal: AbortSignal): Promise<ReadableFile & AsyncDisposable>;
}

/** Large reads, because each uses the thread pool once. */
const fileChunkBytes = 1024 * 1024;

export function fileSource(path: string): FileSource {
	return {
		name: path,
		async open(signal) {
			signal.throwIfAborted();
			await using undo = new AsyncDisposableStack();
			const file = await open(path).catch((error: unknown) => {
				throw unreadable(path, error);
			});
			undo.defer(async () => file.close());
			const stats = await file.stat({bigint: true});
			if (!stats.isFile()) {
				throw new AdaptorError({
					code: 'invalid-argument',
					what: 'Could not read the image: it is not a file',
					where: {path},
				});
			}

			const owned = undo.move();
			const readAt = async (at: bigint, length: number): Promise<Buffer> => {
				signal.throwIfAborted();
				const {bytesRead, buffer} = await file
					.read(Buffer.allocUnsafe(length), 0, length, at)
					.catch((error: unknown) => {
						throw unreadable(path, error);
					});
				return buffer.subarray(0, bytesRead);
			};

			return {
				readAt,
				name: path,
				size: stats.size,
				async *chunks() {
					for (let at = 0n; at < stats.size;) {
						const chunk = await readAt(at, fileChunkBytes);
						if (chunk.length === 0) {
							throw new AdaptorError({
								code: 'aborted',
								what: 'Could not read the image to its end: the file became shorter during the push',
								where: {path},
							});
						}

						at += BigInt(chunk.length);
						if (at > stats.size) {
							throw new AdaptorError({
								code: 'aborted',
								what: 'Could not read the image: the file became longer during the push',
								where: {path},
							});
						}

						yield chunk;
					}
				},
				[Symbol.asyncDispose]: async () => owned.disposeAsync(),
			};
		},
	};
}

export function registrySource(registry: Registry, reference: ImageReference, platform: Platform): ImageSource {
	return {
		name: formatReference(reference),
		async open(signal) {
			const manifest = await registry.manifest(platform, signal);
			const file = await findInLayers(
				manifest.layers.map(layer => () => registry.blob(layer, signal)),
				reference.path,
			);
			return {
				name: `${formatReference({...reference, version: {digest: manifest.digest}})}::/${reference.path}`,
				container: {manifest: manifest.digest, path: reference.path},
				size: file.size,
				chunks: () => file.chunks(),
				[Symbol.asyncDispose]: async () => file[Symbol.asyncDispose](),
			};
		},
	};
}

function unreadable(path: string, cause: unknown): AdaptorError {
	return new AdaptorError({
		code:
			cause instanceof Error && 'code' in cause && cause.code === 'ENOENT' ? 'not-found' : 'failed-precondition',
		what: `Could not read the image: ${toError(cause).message}`,
		where: {path},
		cause,
	});
}

/**
 * What an image is by its first bytes. Pure.
 * Source: QEMU, docs/interop/qcow2.rst (big-endian).
 */
import {foreignImage} from '../sandbox/foreign-image.ts';

export type ImageKind =
	| {readonly format: 'qcow2'; readonly hasBackingFile: boolean}
	/** Nothing but zeros where a boot record would be. */
	| {readonly format: 'zeros'}
	/** Something that no VM can boot from: `a gzip file`. */
	| {readonly format: 'foreign'; readonly name: string}
	/** Everything else is taken for a disk's own bytes. */
	| {readonly format: 'raw'};

const qcow2Mark = Buffer.of(0x51, 0x46, 0x49, 0xfb);
/** u64: 0 when there is none. */
const backingFileOffsetAt = 8;

export function imageKind(header: Uint8Array): ImageKind {
	const bytes = Buffer.from(header.buffer, header.byteOffset, header.byteLength);
	if (bytes.subarray(0, qcow2Mark.length).equals(qcow2Mark)) {
		return {
			format: 'qcow2',
			hasBackingFile:
				bytes.length >= backingFileOffsetAt + 8 && bytes.readBigUInt64BE(backingFileOffsetAt) !== 0n,
		};
	}

	const name = foreignImage(bytes);
	if (name !== undefined) {
		return {format: 'foreign', name};
	}

	return {format: bytes.every(byte => byte === 0) ? 'zeros' : 'raw'};
}

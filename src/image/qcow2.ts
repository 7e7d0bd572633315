/**
 * qcow2 images of pushes: checks whether one is complete, and writes the thin ones for aliases. The header is checked
 * in `vm-image/`, for pushes and starts alike. Pure. Source: QEMU, docs/interop/qcow2.txt. The format is big-endian on
 * every machine.
 */
import {
	compressedFlag,
	hasExtendedL2,
	headerLengthV3,
	headerOffset as offset,
	hostOffset,
	qcow2Magic,
	zeroFlag,
	type ReadImage,
} from '../vm-image/qcow2.ts';
import {cutOff} from '../vm-image/unfit-image.ts';

/**
 * Checks that all clusters in its tables begin within the file: a truncated image begins like a complete one, and boots
 * until the guest reads a missing part.
 * @param head of a qcow2 image that `readImageFormat` has accepted
 * @throws UnfitImageError 'invalid-argument'
 */
export async function checkIsWhole(head: Buffer, fileSize: bigint, read: ReadImage): Promise<void> {
	const clusterBits = head.readUInt32BE(offset.clusterBits);
	const hasLongEntries = hasExtendedL2(head);
	const compressedOffset = (1n << BigInt(62 - (clusterBits - 8))) - 1n;
	const check = (at: bigint): void => {
		if (at >= fileSize) {
			throw cutOff('its tables refer to data beyond the end of the file');
		}
	};

	const l1 = await read(head.readBigUInt64BE(offset.l1TableOffset), head.readUInt32BE(offset.l1Size) * 8);
	for (const table of new Set(entriesOf(l1, 8).map(entry => entry & hostOffset))) {
		check(table);
		const entries = table === 0n ? [] : entriesOf(await read(table, 2 ** clusterBits), hasLongEntries ? 16 : 8);
		for (const entry of entries) {
			check(
				(entry & compressedFlag) !== 0n
					? entry & compressedOffset
					: (entry & zeroFlag) !== 0n
						? 0n
						: entry & hostOffset,
			);
		}
	}
}

/** The first eight bytes of each. */
function entriesOf(table: Buffer, bytesEach: number): bigint[] {
	return Array.from({length: Math.floor(table.length / bytesEach)}, (_, index) =>
		table.readBigUInt64BE(index * bytesEach),
	);
}

/** A cluster of 64 KiB, the default of QEMU. */
const clusterBits = 16;
const clusterSize = 2 ** clusterBits;
const backingFormatExtension = 0xe2_79_2a_ca;

/**
 * The bytes of an empty qcow2 image with the backing file `backing`. Its first cluster contains everything, so that
 * replacing one such image by another is atomic for readers.
 * @throws RangeError for a path that does not fit; those of libvirt are far shorter
 */
export function thinQcow2(
	backing: {readonly path: string; readonly format: 'qcow2' | 'raw'},
	virtualSize: bigint,
): Buffer {
	const l1Entries = Math.max(
		1,
		Number(
			(virtualSize + BigInt(clusterSize) * BigInt(clusterSize / 8) - 1n) /
				(BigInt(clusterSize) * BigInt(clusterSize / 8)),
		),
	);
	const l1Clusters = Math.ceil((l1Entries * 8) / clusterSize);
	const path = Buffer.from(backing.path);
	const format = Buffer.from(backing.format);
	if (path.length > 1023) {
		throw new RangeError("A backing file's path has at most 1023 bytes");
	}

	// Header, refcount table, refcount block, L1 table.
	const clusters = 3 + l1Clusters;
	const image = Buffer.alloc(clusters * clusterSize);
	const extensionAt = headerLengthV3;
	const pathAt = extensionAt + 8 + Math.ceil(format.length / 8) * 8 + 8;
	image.writeUInt32BE(qcow2Magic, 0);
	image.writeUInt32BE(3, offset.version);
	image.writeBigUInt64BE(BigInt(pathAt), offset.backingFileOffset);
	image.writeUInt32BE(path.length, offset.backingFileSize);
	image.writeUInt32BE(clusterBits, offset.clusterBits);
	image.writeBigUInt64BE(virtualSize, offset.size);
	image.writeUInt32BE(l1Entries, offset.l1Size);
	image.writeBigUInt64BE(BigInt(3 * clusterSize), offset.l1TableOffset);
	image.writeBigUInt64BE(BigInt(clusterSize), offset.refcountTableOffset);
	image.writeUInt32BE(1, 56); // Clusters of the refcount table.
	image.writeUInt32BE(4, 96); // Refcounts of 16 bits.
	image.writeUInt32BE(headerLengthV3, offset.headerLength);
	image.writeUInt32BE(backingFormatExtension, extensionAt);
	image.writeUInt32BE(format.length, extensionAt + 4);
	format.copy(image, extensionAt + 8);
	path.copy(image, pathAt);
	image.writeBigUInt64BE(BigInt(2 * clusterSize), clusterSize);
	for (let cluster = 0; cluster < clusters; cluster++) {
		image.writeUInt16BE(1, 2 * clusterSize + 2 * cluster);
	}

	return image;
}

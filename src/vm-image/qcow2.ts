/**
 * The parts of the qcow2 format that image checks need: the header, and the location of guest data. No I/O: the callers
 * provide the bytes. Images are untrusted, and QEMU opens the files that a qcow2 header names. So this file refuses an
 * external data file, and the callers refuse a backing file. Source: QEMU, docs/interop/qcow2.txt. The format is
 * big-endian on every machine.
 */
import {promisify} from 'node:util';
import {constants, inflateRaw, zstdDecompress} from 'node:zlib';
import {cutOff, notAnImage, unsafe} from './unfit-image.ts';

/** Reads the image from an offset; returns fewer bytes at its end. */
export type ReadImage = (at: bigint, length: number) => Promise<Buffer>;

export const qcow2Magic = 0x51_46_49_fb;
export const headerLengthV3 = 104;
const headerLengthV2 = 72;
export const headerOffset = {
	version: 4,
	backingFileOffset: 8,
	backingFileSize: 16,
	clusterBits: 20,
	size: 24,
	cryptMethod: 32,
	l1Size: 36,
	l1TableOffset: 40,
	refcountTableOffset: 48,
	incompatibleFeatures: 72,
	headerLength: 100,
	compressionType: 104,
} as const;
/**
 * The supported ones of the "incompatible features": those that do not refer to another file (dirty refcounts, a
 * compression type, extended L2 entries).
 */
const harmlessFeatures = 0b1_1001n;
const corruptFeature = 0b10n;
const externalDataFeature = 0b100n;
const compressionFeature = 0b1000n;
const extendedL2Feature = 0b1_0000n;
const externalDataExtension = 0x44_41_54_41;
/** The limit of QEMU for an L1 table (QCOW_MAX_L1_SIZE), in entries. */
const maxL1Entries = 4 * 1024 * 1024;
/** Much larger than any pod VM disk, and small enough for all tools. */
const maxVirtualSize = 1n << 46n;

/** Mask for the offset of a table or cluster in an L1 or L2 entry. */
export const hostOffset = 0x00_ff_ff_ff_ff_ff_fe_00n;
export const compressedFlag = 1n << 62n;
/** The cluster reads as zeros; its offset is ignored. */
export const zeroFlag = 1n;
const subclusters = 32;

export function isQcow2(head: Buffer): boolean {
	return head.length >= 4 && head.readUInt32BE(0) === qcow2Magic;
}

/** Size of the guest disk in bytes. */
export function virtualSizeOf(head: Buffer): bigint {
	return head.readBigUInt64BE(headerOffset.size);
}

export function hasExtendedL2(head: Buffer): boolean {
	return (featuresOf(head) & extendedL2Feature) !== 0n;
}

/** Whether the guest reads unallocated clusters from a backing file. */
export function hasBackingFile(head: Buffer): boolean {
	return (
		head.readBigUInt64BE(headerOffset.backingFileOffset) !== 0n ||
		head.readUInt32BE(headerOffset.backingFileSize) !== 0
	);
}

function featuresOf(head: Buffer): bigint {
	return head.readUInt32BE(headerOffset.version) === 2 ? 0n : head.readBigUInt64BE(headerOffset.incompatibleFeatures);
}

/**
 * @param head the first 64 KiB, or all of a smaller file
 * @param fileSize bytes, if known
 * @throws UnfitImageError
 */
export function checkQcow2Header(head: Buffer, fileSize: bigint | undefined): void {
	const version = head.length < headerLengthV2 ? 0 : head.readUInt32BE(headerOffset.version);
	if (version !== 2 && version !== 3) {
		throw notAnImage(
			version === 0 ? 'its qcow2 header is truncated' : `its qcow2 version is ${version}, not 2 or 3`,
		);
	}

	const headerLength =
		version === 2
			? headerLengthV2
			: head.length < headerLengthV3
				? 0
				: head.readUInt32BE(headerOffset.headerLength);
	const clusterBits = head.readUInt32BE(headerOffset.clusterBits);
	if (
		clusterBits < 9 ||
		clusterBits > 21 ||
		headerLength < (version === 2 ? headerLengthV2 : headerLengthV3) ||
		headerLength % 8 !== 0 ||
		headerLength > Math.min(head.length, 2 ** clusterBits)
	) {
		throw notAnImage('its qcow2 header is damaged');
	}

	if (head.readUInt32BE(headerOffset.cryptMethod) !== 0) {
		throw unsafe(
			'it is encrypted',
			'Decrypt it with "qemu-img convert". Images for confidential VMs are encrypted inside the disk instead.',
		);
	}

	const features = featuresOf(head);
	if ((features & externalDataFeature) !== 0n || hasExternalData(head, headerLength, 2 ** clusterBits)) {
		throw unsafe('it has an external data file', 'Merge both files with "qemu-img convert -O qcow2".');
	}

	if ((features & corruptFeature) !== 0n) {
		throw unsafe('it is marked as corrupt', 'Repair it with "qemu-img check -r all", or build it again.');
	}

	if ((features & ~harmlessFeatures) !== 0n) {
		throw unsafe('it uses unsupported qcow2 features', 'Convert it with "qemu-img convert -O qcow2".');
	}

	const virtualSize = virtualSizeOf(head);
	if (virtualSize === 0n || virtualSize > maxVirtualSize) {
		throw notAnImage(`its virtual size is ${String(virtualSize)} bytes`);
	}

	const l1Size = head.readUInt32BE(headerOffset.l1Size);
	const l1End = head.readBigUInt64BE(headerOffset.l1TableOffset) + BigInt(l1Size) * 8n;
	if (
		l1Size > maxL1Entries ||
		(fileSize !== undefined &&
			(l1End > fileSize || head.readBigUInt64BE(headerOffset.refcountTableOffset) >= fileSize))
	) {
		throw cutOff('its tables are beyond the end of the file');
	}
}

/** Header extensions follow the header, each `u32 type, u32 length, data padded to 8`; type 0 ends them. */
function hasExternalData(head: Buffer, headerLength: number, clusterSize: number): boolean {
	const end = Math.min(head.length, clusterSize);
	for (let at = headerLength; at + 8 <= end;) {
		const type = head.readUInt32BE(at);
		if (type === 0) {
			return false;
		}

		if (type === externalDataExtension) {
			return true;
		}

		at += 8 + Math.ceil(head.readUInt32BE(at + 4) / 8) * 8;
	}

	return false;
}

/**
 * Reads bytes of the guest disk.
 * @param head the start of an image that `checkQcow2Header` accepted
 * @returns undefined if their compression is unsupported, or if they are in the backing file
 * @throws UnfitImageError if the file ends before these bytes
 */
export async function readGuestBytes(
	head: Buffer,
	read: ReadImage,
	from: number,
	length: number,
): Promise<Buffer | undefined> {
	const clusterSize = 2 ** head.readUInt32BE(headerOffset.clusterBits);
	const step = hasExtendedL2(head) ? clusterSize / subclusters : clusterSize;
	const parts: Buffer[] = [];
	for (let at = from; at < from + length;) {
		const end = Math.min(from + length, (Math.floor(at / step) + 1) * step);
		const part = await readPiece(head, read, at, end - at);
		if (part === undefined) {
			return undefined;
		}

		parts.push(part);
		at = end;
	}

	return Buffer.concat(parts);
}

/** Reads within one cluster, or within one subcluster if the image has subclusters. */
async function readPiece(head: Buffer, read: ReadImage, at: number, length: number): Promise<Buffer | undefined> {
	const exactly: ReadImage = async (offset, wanted) => {
		const bytes = await read(offset, wanted);
		if (bytes.length < wanted) {
			throw cutOff('its tables refer to data beyond the end of the file');
		}

		return bytes;
	};
	const clusterBits = head.readUInt32BE(headerOffset.clusterBits);
	const clusterSize = 2 ** clusterBits;
	const entryBytes = hasExtendedL2(head) ? 16 : 8;
	const cluster = Math.floor(at / clusterSize);
	const entriesEach = clusterSize / entryBytes;
	const l1Index = Math.floor(cluster / entriesEach);
	const unallocated = hasBackingFile(head) ? undefined : Buffer.alloc(length);
	if (l1Index >= head.readUInt32BE(headerOffset.l1Size)) {
		return Buffer.alloc(length);
	}

	const l2Table =
		(await exactly(head.readBigUInt64BE(headerOffset.l1TableOffset) + BigInt(l1Index * 8), 8)).readBigUInt64BE() &
		hostOffset;
	if (l2Table === 0n) {
		return unallocated;
	}

	const entryAndBitmap = await exactly(l2Table + BigInt((cluster % entriesEach) * entryBytes), entryBytes);
	const entry = entryAndBitmap.readBigUInt64BE();
	const within = at % clusterSize;
	if ((entry & compressedFlag) !== 0n) {
		return (await readCompressed(head, read, entry))?.subarray(within, within + length);
	}

	// A bit in the lower half means that a subcluster is allocated, a bit in the upper half that it reads as zeros.
	const subcluster = Math.floor(within / (clusterSize / subclusters));
	const isSet = (bitmap: number): boolean => ((bitmap >>> subcluster) & 1) === 1;
	const [isZero, isAllocated] =
		entryBytes === 16
			? [isSet(entryAndBitmap.readUInt32BE(8)), isSet(entryAndBitmap.readUInt32BE(12))]
			: [(entry & zeroFlag) !== 0n, (entry & hostOffset) !== 0n];
	return isZero
		? Buffer.alloc(length)
		: isAllocated
			? exactly((entry & hostOffset) + BigInt(within), length)
			: unallocated;
}

/** Reads a whole cluster. After its data, there may be another cluster or the end of the file. */
async function readCompressed(head: Buffer, read: ReadImage, entry: bigint): Promise<Buffer | undefined> {
	const clusterBits = head.readUInt32BE(headerOffset.clusterBits);
	const offsetBits = BigInt(62 - (clusterBits - 8));
	const at = entry & ((1n << offsetBits) - 1n);
	const sectors = Number((entry & (compressedFlag - 1n)) >> offsetBits) + 1;
	const data = await read(at, sectors * 512 - Number(at % 512n));
	const type =
		(featuresOf(head) & compressionFeature) !== 0n &&
		head.readUInt32BE(headerOffset.headerLength) > headerOffset.compressionType
			? head.readUInt8(headerOffset.compressionType)
			: 0;
	try {
		const maxOutputLength = 2 ** clusterBits;
		return type === 0
			? await promisify(inflateRaw)(data, {finishFlush: constants.Z_SYNC_FLUSH, maxOutputLength})
			: type === 1
				? await promisify(zstdDecompress)(data, {finishFlush: constants.ZSTD_e_flush, maxOutputLength})
				: undefined;
	} catch {
		return undefined;
	}
}

/**
 * What the first bytes of an image say: qcow2 or raw, how large for the guest, whether the host may be given it; and
 * whether it is whole. Pure. An image comes from elsewhere, and QEMU opens whatever a qcow2 header names: one that
 * names another file is refused before a byte is written. Source: QEMU, docs/interop/qcow2.txt. The format is
 * big-endian on every machine.
 */
import {AdaptorError} from '../core/errors.ts';
import {foreignImage} from '../sandbox/foreign-image.ts';

export interface ImageFormat {
	readonly format: 'qcow2' | 'raw';
	/** Bytes, as the guest sees them. */
	readonly virtualSize: bigint;
}

const magic = 0x51_46_49_fb;
const headerLengthV2 = 72;
const headerLengthV3 = 104;
const offset = {
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
} as const;
/**
 * Incompatible features that do not make it another file's: dirty refcounts, a compression type, extended L2 entries.
 */
const harmlessFeatures = 0b1_1001n;
const corruptFeature = 0b10n;
const externalDataFeature = 0b100n;
const extendedL2Feature = 0b1_0000n;
const externalDataExtension = 0x44_41_54_41;
/** QEMU's own limit for an L1 table (QCOW_MAX_L1_SIZE), in entries. */
const maxL1Entries = 4 * 1024 * 1024;
const sector = 512n;
/** Far more than any pod VM has, far less than what makes tools stumble. */
const maxVirtualSize = 1n << 46n;

/**
 * @param head the first 64 KiB, or all of a smaller file
 * @param fileSize bytes
 * @throws AdaptorError 'invalid-argument' for what is no image, 'failed-precondition' for one that the host must not
 * open
 */
export function readImageFormat(head: Buffer, fileSize: bigint): ImageFormat {
	if (head.length >= 4 && head.readUInt32BE(0) === magic) {
		return {format: 'qcow2', virtualSize: readQcow2(head, fileSize)};
	}

	const name = foreignImage(head);
	if (name !== undefined) {
		throw notAnImage(
			`it is ${name}`,
			'Unpack it, or convert it with "qemu-img convert -O qcow2", and push the result.',
		);
	}

	if (fileSize === 0n || fileSize % sector !== 0n) {
		throw notAnImage(
			fileSize === 0n
				? 'it is empty'
				: 'it is not qcow2, and a raw image is a whole number of sectors of 512 bytes',
		);
	}

	if (head.every(byte => byte === 0)) {
		throw notAnImage(`its first ${head.length} bytes are zero, so nothing could boot from it`);
	}

	return {format: 'raw', virtualSize: fileSize};
}

function readQcow2(head: Buffer, fileSize: bigint): bigint {
	const version = head.length < headerLengthV2 ? 0 : head.readUInt32BE(offset.version);
	if (version !== 2 && version !== 3) {
		throw notAnImage(version === 0 ? 'its qcow2 header is cut off' : `its qcow2 version is ${version}, not 2 or 3`);
	}

	const headerLength =
		version === 2 ? headerLengthV2 : head.length < headerLengthV3 ? 0 : head.readUInt32BE(offset.headerLength);
	const clusterBits = head.readUInt32BE(offset.clusterBits);
	if (
		clusterBits < 9 ||
		clusterBits > 21 ||
		headerLength < (version === 2 ? headerLengthV2 : headerLengthV3) ||
		headerLength % 8 !== 0 ||
		headerLength > Math.min(head.length, 2 ** clusterBits)
	) {
		throw notAnImage('its qcow2 header is damaged');
	}

	if (head.readBigUInt64BE(offset.backingFileOffset) !== 0n || head.readUInt32BE(offset.backingFileSize) !== 0) {
		throw unsafe(
			'it reads through to another file (a backing file)',
			'Make it whole with "qemu-img convert -O qcow2".',
		);
	}

	if (head.readUInt32BE(offset.cryptMethod) !== 0) {
		throw unsafe(
			'it is encrypted',
			'Decrypt it with "qemu-img convert"; confidential images are protected by their own means, inside.',
		);
	}

	const features = version === 2 ? 0n : head.readBigUInt64BE(offset.incompatibleFeatures);
	if ((features & externalDataFeature) !== 0n || hasExternalData(head, headerLength, 2 ** clusterBits)) {
		throw unsafe(
			'its data is in another file (an external data file)',
			'Make it whole with "qemu-img convert -O qcow2".',
		);
	}

	if ((features & corruptFeature) !== 0n) {
		throw unsafe('it is marked as corrupt', 'Repair it with "qemu-img check -r all", or build it again.');
	}

	if ((features & ~harmlessFeatures) !== 0n) {
		throw unsafe(
			'it uses features of qcow2 that are not known here',
			'Convert it with "qemu-img convert -O qcow2".',
		);
	}

	const virtualSize = head.readBigUInt64BE(offset.size);
	if (virtualSize === 0n || virtualSize > maxVirtualSize) {
		throw notAnImage(`its virtual size is ${String(virtualSize)} bytes`);
	}

	const l1Size = head.readUInt32BE(offset.l1Size);
	const l1End = head.readBigUInt64BE(offset.l1TableOffset) + BigInt(l1Size) * 8n;
	if (l1Size > maxL1Entries || l1End > fileSize || head.readBigUInt64BE(offset.refcountTableOffset) >= fileSize) {
		throw cutOff('its tables lie behind its end');
	}

	return virtualSize;
}

/** Of an L1 or L2 entry: where a table or a cluster begins. */
const hostOffset = 0x00_ff_ff_ff_ff_ff_fe_00n;
const compressedFlag = 1n << 62n;
/** Reads as zeros, whatever it names. */
const zeroFlag = 1n;

/**
 * Whether all that its tables name begins in the file: one that was cut off, by a download that broke for one, begins
 * like a whole one, and boots until the guest reads what is missing.
 * @param head of a qcow2 image that `readImageFormat` has taken
 * @param read the image's bytes from an offset on; fewer where it ends
 * @throws AdaptorError 'invalid-argument'
 */
export async function checkIsWhole(
	head: Buffer,
	fileSize: bigint,
	read: (at: bigint, length: number) => Promise<Buffer>,
): Promise<void> {
	const clusterBits = head.readUInt32BE(offset.clusterBits);
	const hasLongEntries =
		head.readUInt32BE(offset.version) > 2 &&
		(head.readBigUInt64BE(offset.incompatibleFeatures) & extendedL2Feature) !== 0n;
	const compressedOffset = (1n << BigInt(62 - (clusterBits - 8))) - 1n;
	const check = (at: bigint): void => {
		if (at >= fileSize) {
			throw cutOff('its tables name what lies behind its end');
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

function notAnImage(why: string, remedy = 'Push a qcow2 or raw disk image.'): AdaptorError {
	return new AdaptorError({
		code: 'invalid-argument',
		what: `Could not use the file as a pod VM image: ${why}`,
		remedy,
	});
}

function cutOff(why: string): AdaptorError {
	return notAnImage(
		`${why}: it is cut off or damaged`,
		'Compare its size with the original\'s, and look at "qemu-img check".',
	);
}

function unsafe(why: string, remedy: string): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `Could not use the file as a pod VM image: ${why}`,
		remedy,
	});
}

/** A cluster of 64 KiB, QEMU's default. */
const clusterBits = 16;
const clusterSize = 2 ** clusterBits;
const backingFormatExtension = 0xe2_79_2a_ca;

/**
 * An empty qcow2 image that reads through to `backing`: all of its bytes. Its first cluster says everything, so that
 * replacing one such image by another changes its reader's mind at once or not at all.
 * @throws RangeError for a path that does not fit; libvirt's are far shorter
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
	image.writeUInt32BE(magic, 0);
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

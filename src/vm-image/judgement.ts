/**
 * Checks whether bytes are an image from which a pod VM may start. The same rules apply to a push, to the first start
 * of a VM from a volume, and to `check`. The file name and the format that libvirt reports are not used.
 */
import {foreignImage} from './foreign-file.ts';
import {checkQcow2Header, hasBackingFile, isQcow2, readGuestBytes, virtualSizeOf, type ReadImage} from './qcow2.ts';
import {notAnImage, unsafe, UnfitImageError} from './unfit-image.ts';

export interface ImageFormat {
	readonly format: 'qcow2' | 'raw';
	/** Size of the guest disk in bytes. */
	readonly virtualSize: bigint;
}

/** The default cluster size of qemu-img, and larger than any boot record. */
export const headBytes = 64 * 1024;
const sector = 512;

/**
 * Does not check for a backing file: whether it is allowed depends on who selected the image.
 * @param head the first 64 KiB, or all of a smaller file
 * @param fileSize bytes, if known
 * @throws UnfitImageError 'invalid-argument' if it is not an image, 'failed-precondition' if the host must not open it
 */
export function readFormat(head: Buffer, fileSize?: bigint): ImageFormat['format'] {
	if (isQcow2(head)) {
		checkQcow2Header(head, fileSize);
		return 'qcow2';
	}

	const name = foreignImage(head);
	if (name !== undefined) {
		throw notAnImage(
			`it is ${name}`,
			'Unpack it, or convert it with "qemu-img convert -O qcow2", and push the result.',
		);
	}

	if (fileSize !== undefined && (fileSize === 0n || fileSize % BigInt(sector) !== 0n)) {
		throw notAnImage(
			fileSize === 0n
				? 'it is empty'
				: 'it is not qcow2, and a raw image is a whole number of sectors of 512 bytes',
		);
	}

	return 'raw';
}

/** Like `readFormat`, for a whole file. Also refuses a backing file. */
export function readImageFormat(head: Buffer, fileSize: bigint): ImageFormat {
	const format = readFormat(head, fileSize);
	if (isOverlay(format, head)) {
		throw backingFileRefusal();
	}

	return {format, virtualSize: format === 'qcow2' ? virtualSizeOf(head) : fileSize};
}

/** Whether the header names a backing file, which the host would open. */
export function isOverlay(format: ImageFormat['format'], head: Buffer): boolean {
	return format === 'qcow2' && hasBackingFile(head);
}

export function backingFileRefusal(): UnfitImageError {
	return unsafe('it has a backing file', 'Flatten it with "qemu-img convert -O qcow2".');
}

const zipl = Buffer.from('zIPL');
/** EBCDIC: first record of a DASD in the compatible disk layout, volume labels of the Linux layout and of CMS. */
const [ipl1, lnx1, cms1] = ['c9d7d3f1', 'd3d5e7f1', 'c3d4e2f1'].map(hex => Buffer.from(hex, 'hex'));
/** Where else zipl's mark may be on a DASD: a disk without a label, and the second record if the first has no key. */
const markOffset = {unlabelled: 0x70, secondRecord: 92};
/** The first descriptor of an ISO 9660 file system; an El Torito boot record follows it. */
const isoMark = {at: 32_769, bytes: Buffer.from('CD001')};
/** Of a DASD. */
const blockSizes = [512, 1024, 2048, 4096];
/** Three blocks of a DASD: two IPL records and the volume label. */
const dasdBytes = 3 * 4096;
const pcBootMark = {at: 510, bytes: Buffer.of(0x55, 0xaa)};

/**
 * Checks for a boot record where the firmware looks for it: a zipl record on a disk or a DASD, or an ISO 9660 file
 * system. zipl writes its mark into other blocks, too, so the mark alone proves nothing. The record itself is not
 * verified. Source: QEMU, pc-bios/s390-ccw/bootmap.c (zipl_load and the functions it calls).
 * @param head the start of an image whose format is `format` according to `readFormat`
 * @throws UnfitImageError 'failed-precondition' for an image without a boot record. An image that cannot be read here
 * passes.
 */
export async function checkBootRecord(format: ImageFormat['format'], head: Buffer, read: ReadImage): Promise<void> {
	const guest = async (from: number, length: number): Promise<Buffer | undefined> =>
		format === 'raw' ? head.subarray(from, from + length) : readGuestBytes(head, read, from, length);
	const start = await guest(0, sector);
	if (start === undefined || start.subarray(0, zipl.length).equals(zipl)) {
		return;
	}

	const iso = await guest(isoMark.at, isoMark.bytes.length);
	const blocks = iso === undefined || iso.equals(isoMark.bytes) ? undefined : await guest(0, dasdBytes);
	if (blocks === undefined || isBootableDasd(blocks)) {
		return;
	}

	throw cannotBoot(blocks);
}

function isBootableDasd(blocks: Buffer): boolean {
	const has = (mark: Buffer | undefined, at: number): boolean =>
		mark !== undefined && blocks.subarray(at, at + mark.length).equals(mark);
	return (
		has(ipl1, 0) ||
		has(zipl, markOffset.unlabelled) ||
		blockSizes.some(size => has(lnx1, 2 * size) || has(cms1, 2 * size) || has(zipl, size + markOffset.secondRecord))
	);
}

function cannotBoot(start: Buffer): UnfitImageError {
	const remedy = 'Use the pod VM image for s390x: zipl writes its boot record.';
	if (start.every(byte => byte === 0)) {
		return new UnfitImageError(
			'failed-precondition',
			'it begins with zeros only: the content was not uploaded, so no VM can boot from it',
			remedy,
		);
	}

	const inside = isQcow2(start) ? 'another qcow2 image' : foreignImage(start);
	const isForPc = start.subarray(pcBootMark.at, pcBootMark.at + pcBootMark.bytes.length).equals(pcBootMark.bytes);
	const found =
		inside === undefined ? (isForPc ? ' (it has the boot sector of a PC)' : '') : ` (it contains ${inside})`;
	return new UnfitImageError(
		'failed-precondition',
		`it has no boot record of s390x in its first block${found}: an image for another architecture?`,
		remedy,
	);
}

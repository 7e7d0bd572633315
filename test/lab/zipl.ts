/**
 * A disk that the s390-ccw BIOS of QEMU can boot, written without zipl, loop devices or root. Pure; big-endian
 * throughout. Layout: QEMU, pc-bios/s390-ccw/bootmap.h ("SCSI" scheme, without ECKD); parameter area of the kernel:
 * arch/s390/include/asm/setup.h.
 *
 *   block 0 ──▶ program table ──▶ component table ──▶ list of data blocks ──▶ kernel, at 0x10000
 *                                                └──▶ list of data blocks ──▶ initramfs, at 32 MiB
 *                                                └──▶ start PSW
 */
import {AdaptorError} from '../../src/core/errors.ts';

export interface BootDisk {
	/** `vmlinuz` of Debian: an s390x kernel with its own decompressor. */
	readonly kernel: Uint8Array;
	readonly initramfs: Uint8Array;
	/** ASCII, without a terminating zero. */
	readonly commandLine: string;
}

const blockSize = 512;
const pointerLength = 16;
const maxBlocksOfPointer = 0x1_00_00;
const magic = Buffer.from('zIPL');

const entryPoint = 0x1_00_00;
/** 64-bit addressing, and the start address of the kernel. */
const startPsw = 0x00_08_00_00_80_01_00_00n;
/** Above the decompressed kernel (about 25 MiB), so that its start-up code does not have to move the initramfs. */
const initramfsAddress = 32 * 1_048_576;

const signature = {offset: 0x1_00_08, text: 'S390EP'} as const;
const parameter = {
	initramfsAddress: 0x1_04_08,
	initramfsLength: 0x1_04_10,
	maxCommandLine: 0x1_04_30,
	commandLine: 0x1_04_80,
} as const;
const oldMaxCommandLine = 896;

const component = {load: 2, execute: 1} as const;

/**
 * @throws AdaptorError 'invalid-argument' for a kernel that is not for s390x, or that has no space for the command line
 * or below the initramfs
 */
export function ziplDisk({kernel, initramfs, commandLine}: BootDisk): Buffer {
	const disk = new Disk();
	const kernelList = disk.addSegment(patched(kernel, initramfs.length, commandLine).subarray(entryPoint));
	const initramfsList = disk.addSegment(initramfs);
	const components = disk.add(
		Buffer.concat([
			magic,
			Buffer.alloc(28),
			componentEntry(pointer(kernelList), component.load, BigInt(entryPoint)),
			componentEntry(pointer(initramfsList), component.load, BigInt(initramfsAddress)),
			componentEntry(Buffer.alloc(pointerLength), component.execute, startPsw),
		]),
	);
	// Entry 0 is the default, entry 1 the first entry of the menu.
	const programs = disk.add(Buffer.concat([magic, Buffer.alloc(12), pointer(components), pointer(components)]));
	return disk.finish(programs);
}

function patched(kernel: Uint8Array, initramfsLength: number, commandLine: string): Buffer {
	const image = Buffer.from(kernel);
	const {offset, text} = signature;
	if (image.length < parameter.commandLine || image.toString('latin1', offset, offset + text.length) !== text) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The kernel is not a bootable s390x kernel',
			where: {bytes: image.length},
		});
	}

	if (image.length > initramfsAddress) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The kernel overlaps the initramfs',
			where: {bytes: image.length},
		});
	}

	const terminated = Buffer.from(`${commandLine}\0`, 'ascii');
	const room = Number(image.readBigUInt64BE(parameter.maxCommandLine)) || oldMaxCommandLine;
	if (terminated.length > Math.min(room, image.length - parameter.commandLine)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The kernel has no space for the command line',
			where: {bytes: terminated.length, room},
		});
	}

	image.writeBigUInt64BE(BigInt(initramfsAddress), parameter.initramfsAddress);
	image.writeBigUInt64BE(BigInt(initramfsLength), parameter.initramfsLength);
	terminated.copy(image, parameter.commandLine);
	return image;
}

class Disk {
	/** Each chunk is a whole number of blocks; the first is written last. */
	readonly #parts: Buffer[] = [];
	#blocks = 1;

	/** @returns the number of its first block */
	add(content: Uint8Array): number {
		const block = this.#blocks;
		const padded = Buffer.alloc(Math.ceil(content.length / blockSize) * blockSize);
		padded.set(content);
		this.#parts.push(padded);
		this.#blocks += padded.length / blockSize;
		return block;
	}

	/** Adds data that is loaded as one piece, and the block that lists its blocks. @returns the number of that block */
	addSegment(content: Uint8Array): number {
		const first = this.add(content);
		const list = [];
		for (let block = first; block < this.#blocks; block += maxBlocksOfPointer) {
			list.push(pointer(block, Math.min(maxBlocksOfPointer, this.#blocks - block)));
		}

		return this.add(Buffer.concat(list));
	}

	finish(programTable: number): Buffer {
		const start = Buffer.alloc(blockSize);
		magic.copy(start);
		start.writeUInt32BE(1, 4); // version
		pointer(programTable).copy(start, 16);
		return Buffer.concat([start, ...this.#parts]);
	}
}

function pointer(block: number, count = 1): Buffer {
	const bytes = Buffer.alloc(pointerLength);
	bytes.writeBigUInt64BE(BigInt(block), 0);
	bytes.writeUInt16BE(blockSize, 8);
	bytes.writeUInt16BE(count - 1, 10);
	return bytes;
}

function componentEntry(data: Buffer, type: number, value: bigint): Buffer {
	const bytes = Buffer.alloc(32);
	data.copy(bytes, 0);
	bytes.writeUInt8(type, 23);
	bytes.writeBigUInt64BE(value, 24);
	return bytes;
}

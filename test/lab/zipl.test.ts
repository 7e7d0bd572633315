import test from 'ava';
import {createHash} from 'node:crypto';
import {AdaptorError} from '../../src/core/errors.ts';
import {ziplDisk} from './zipl.ts';

const blockSize = 512;

/**
 * The parts of a kernel that the builder of boot disks uses: the signature, the space for a command line, and bytes
 * that identify their position.
 */
function kernelLike(length: number, maxCommandLine = 4096n): Buffer {
	const kernel = Buffer.from(Array.from({length}, (_, index) => index % 251));
	kernel.write('S390EP', 0x1_00_08, 'latin1');
	kernel.writeBigUInt64BE(maxCommandLine, 0x1_04_30);
	return kernel;
}

/**
 * Parses a disk from its first block, like the firmware: which data is loaded at which address, and the start address.
 */
function boot(disk: Buffer): {segments: Map<bigint, Buffer>; psw: bigint} {
	const block = (number: number, count = 1): Buffer =>
		disk.subarray(number * blockSize, (number + count) * blockSize);
	const pointed = (table: Buffer, offset: number): {block: number; count: number} => {
		if (table.readUInt16BE(offset + 8) !== blockSize) {
			throw new RangeError('a pointer with another block size');
		}

		return {block: Number(table.readBigUInt64BE(offset)), count: table.readUInt16BE(offset + 10) + 1};
	};
	const magic = (table: Buffer): Buffer => {
		if (table.toString('latin1', 0, 4) !== 'zIPL') {
			throw new RangeError('no magic');
		}

		return table;
	};

	const programs = magic(block(pointed(magic(block(0)), 16).block));
	const components = magic(block(pointed(programs, 16).block));
	const segments = new Map<bigint, Buffer>();
	for (let entry = 32; ; entry += 32) {
		const value = components.readBigUInt64BE(entry + 24);
		const type = components.readUInt8(entry + 23);
		if (type === 1) {
			return {segments, psw: value};
		}

		const list = block(pointed(components, entry).block);
		const parts = [];
		for (let at = 0; at < blockSize && list.readBigUInt64BE(at) !== 0n; at += 16) {
			const {block: first, count} = pointed(list, at);
			parts.push(block(first, count));
		}

		segments.set(value, Buffer.concat(parts));
	}
}

test('the firmware finds kernel and initramfs at their addresses, and starts in 64-bit mode', t => {
	const kernel = kernelLike(0x2_00_00);
	const initramfs = Buffer.from('an initramfs '.repeat(100));
	const {segments, psw} = boot(ziplDisk({kernel, initramfs, commandLine: 'console=ttysclp0 quiet'}));
	t.is(psw, 0x00_08_00_00_80_01_00_00n);
	t.deepEqual([...segments.keys()], [0x1_00_00n, 0x2_00_00_00n]);
	t.deepEqual(segments.get(0x2_00_00_00n)?.subarray(0, initramfs.length), initramfs);
	const loaded = segments.get(0x1_00_00n) ?? Buffer.alloc(0);
	t.is(loaded.readBigUInt64BE(0x4_08), 0x2_00_00_00n);
	t.is(loaded.readBigUInt64BE(0x4_10), BigInt(initramfs.length));
	t.is(loaded.toString('latin1', 0x4_80, 0x4_80 + 23), 'console=ttysclp0 quiet\0');
	t.deepEqual(loaded.subarray(0x5_00), kernel.subarray(0x1_05_00), 'the rest of the kernel is as it was');
});

test('an initramfs of more blocks than one pointer can count comes back whole', t => {
	const initramfs = Buffer.alloc(0x1_00_01 * blockSize);
	createHash('shake256', {outputLength: 64})
		.digest()
		.copy(initramfs, initramfs.length - 64);
	const {segments} = boot(ziplDisk({kernel: kernelLike(0x1_10_00), initramfs, commandLine: ''}));
	t.true(segments.get(0x2_00_00_00n)?.equals(initramfs));
});

test('the same input makes the same disk, byte for byte', t => {
	const disk = ziplDisk({kernel: kernelLike(0x1_10_00), initramfs: Buffer.from('initramfs'), commandLine: 'quiet'});
	t.is(disk.length % blockSize, 0);
	t.is(
		createHash('sha256').update(disk).digest('hex'),
		'd4e97e5673fffb0bd4fd9f2d5cb94f5c8fa2e0f83aeadd5730f6d7bb88859e93',
	);
});

const refusals: ReadonlyArray<readonly [title: string, kernel: Buffer, commandLine: string]> = [
	['an x86 kernel', Buffer.concat([Buffer.alloc(0x2_02), Buffer.from('HdrS'), Buffer.alloc(0x2_00_00)]), ''],
	['an empty file', Buffer.alloc(0), ''],
	[
		'a kernel that reaches into the initramfs',
		(() => {
			const kernel = Buffer.alloc(33 * 1_048_576);
			kernel.write('S390EP', 0x1_00_08, 'latin1');
			return kernel;
		})(),
		'',
	],
	['a command line longer than the kernel takes', kernelLike(0x2_00_00, 16n), 'sixteen letters!'],
	['a command line longer than an old kernel takes', kernelLike(0x2_00_00, 0n), 'x'.repeat(896)],
];
for (const [title, kernel, commandLine] of refusals) {
	test(`${title} is refused`, t => {
		const error = t.throws(() => ziplDisk({kernel, initramfs: Buffer.alloc(1), commandLine}), {
			instanceOf: AdaptorError,
		});
		t.is(error.code, 'invalid-argument');
	});
}

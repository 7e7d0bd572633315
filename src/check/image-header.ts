/**
 * What an image is by its first bytes. Pure.
 * Source: QEMU, docs/interop/qcow2.rst (big-endian); the other marks are those of their formats' specifications.
 */

export type ImageKind =
	| {readonly format: 'qcow2'; readonly hasBackingFile: boolean}
	/** Nothing but zeros where a boot record would be. */
	| {readonly format: 'zeros'}
	/** Something that no VM can boot from, by its usual name. */
	| {readonly format: 'foreign'; readonly name: string}
	/** Everything else is taken for a disk's own bytes. */
	| {readonly format: 'raw'};

const marks: ReadonlyArray<readonly [name: string, mark: Buffer]> = [
	['gzip', Buffer.of(0x1f, 0x8b)],
	['xz', Buffer.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0)],
	['zstd', Buffer.of(0x28, 0xb5, 0x2f, 0xfd)],
	['bzip2', Buffer.from('BZh')],
	['zip', Buffer.of(0x50, 0x4b, 3, 4)],
	['VMDK', Buffer.from('KDMV')],
	['VHDX', Buffer.from('vhdxfile')],
	['VHD', Buffer.from('conectix')],
	['LUKS', Buffer.of(0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe)],
	['HTML', Buffer.from('<!DOCTYPE')],
	['HTML', Buffer.from('<html')],
];
const qcow2Mark = Buffer.of(0x51, 0x46, 0x49, 0xfb);
/** u64: 0 when there is none. */
const backingFileOffsetAt = 8;

export function imageKind(header: Uint8Array): ImageKind {
	const bytes = Buffer.from(header.buffer, header.byteOffset, header.byteLength);
	const startsWith = (mark: Buffer): boolean => bytes.subarray(0, mark.length).equals(mark);
	if (startsWith(qcow2Mark)) {
		return {format: 'qcow2', hasBackingFile: bytes.length >= backingFileOffsetAt + 8 && bytes.readBigUInt64BE(backingFileOffsetAt) !== 0n};
	}

	const foreign = marks.find(([, mark]) => startsWith(mark));
	if (foreign !== undefined) {
		return {format: 'foreign', name: foreign[0]};
	}

	return {format: bytes.every(byte => byte === 0) ? 'zeros' : 'raw'};
}

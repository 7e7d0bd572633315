/**
 * Recognises files that are not disk images by their first bytes; without this check they would count as raw images.
 * Used both for pushed images and for volumes in a pool. Pure. Source: the specifications of the formats.
 */

const marks: ReadonlyArray<readonly [mark: Buffer, name: string]> = [
	[Buffer.of(0x1f, 0x8b), 'a gzip file'],
	[Buffer.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0), 'an xz file'],
	[Buffer.of(0x28, 0xb5, 0x2f, 0xfd), 'a zstd file'],
	[Buffer.from('BZh'), 'a bzip2 file'],
	[Buffer.from('PK\x03\x04'), 'a zip file'],
	[Buffer.from('KDMV'), 'a VMDK image'],
	[Buffer.from('vhdxfile'), 'a VHDX image'],
	[Buffer.from('conectix'), 'a VHD image'],
	[Buffer.from('<<< '), 'a VDI image'],
	[Buffer.from('QED\0'), 'a QED image'],
	[Buffer.from('LUKS\xba\xbe', 'latin1'), 'an encrypted (LUKS) image'],
	[Buffer.from('\x7fELF', 'latin1'), 'a program'],
	[Buffer.from('<'), 'a web page or XML'],
	[Buffer.from('{'), 'JSON'],
];

/** @returns the kind of file with its article, as in "it is a gzip file"; undefined if it may be a disk */
export function foreignImage(head: Uint8Array): string | undefined {
	return marks.find(([mark]) => mark.equals(head.subarray(0, mark.length)))?.[1];
}

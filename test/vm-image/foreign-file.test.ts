import test from 'ava';
import {foreignImage} from '../../src/vm-image/foreign-file.ts';

for (const [name, head] of [
	['a gzip file', Buffer.of(0x1f, 0x8b, 8)],
	['an xz file', Buffer.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 0)],
	['a zstd file', Buffer.of(0x28, 0xb5, 0x2f, 0xfd)],
	['a bzip2 file', Buffer.from('BZh9')],
	['a zip file', Buffer.of(0x50, 0x4b, 3, 4)],
	['a VMDK image', Buffer.from('KDMV\x01')],
	['a VHDX image', Buffer.from('vhdxfile')],
	['a VHD image', Buffer.from('conectix')],
	['a VDI image', Buffer.from('<<< Oracle VM VirtualBox Disk Image >>>')],
	['a QED image', Buffer.from('QED\0')],
	['an encrypted (LUKS) image', Buffer.of(0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe, 0, 2)],
	['a program', Buffer.of(0x7f, 0x45, 0x4c, 0x46)],
	['a web page or XML', Buffer.from('<!DOCTYPE html>')],
	['JSON', Buffer.from('{"error":"not found"}')],
] as const) {
	test(`${name} is recognised by its first bytes`, t => {
		t.is(foreignImage(head), name);
		t.is(foreignImage(Uint8Array.from(head)), name);
	});
}

test('data that may be a disk is not recognised as a foreign file', t => {
	// Zeros, a boot record of s390x, qcow2, and a mark that is cut off or further on.
	for (const head of [
		Buffer.alloc(512),
		Buffer.from('zIPL\0'),
		Buffer.of(0x51, 0x46, 0x49, 0xfb),
		Buffer.of(0x1f),
		Buffer.from('vhdxfil'),
		Buffer.of(0, 0x1f, 0x8b),
	]) {
		t.is(foreignImage(head), undefined);
	}
});

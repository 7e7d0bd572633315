/**
 * node:zlib, and what of it Node.js 20 does not have yet. An import of a name that is missing fails before any program
 * runs, so emit.ts puts this in its place.
 */
export * from 'node:zlib';

/** No test there comes here, but what imports the names must load. */
export function createZstdDecompress(): never {
	throw new Error('Node.js 20 knows no zstd');
}

/** Of clusters of qcow2 images. */
export function zstdDecompress(): never {
	throw new Error('Node.js 20 knows no zstd');
}

/** CRC-32 of RFC 1952, section 8, as Node.js 22.2 has it. Bit by bit: what it is asked for here is small. */
export function crc32(data: Uint8Array | string): number {
	let crc = 0xff_ff_ff_ff;
	for (const byte of typeof data === 'string' ? Buffer.from(data) : data) {
		crc ^= byte;
		for (let bit = 0; bit < 8; bit++) {
			crc = (crc >>> 1) ^ (0xed_b8_83_20 & -(crc & 1));
		}
	}

	return (crc ^ 0xff_ff_ff_ff) >>> 0;
}

/** Writes the headers of tar archives. Pure. Source: POSIX, pax ("ustar Interchange Format"). */

const blockBytes = 512;
/** The largest number of eleven octal digits. A larger one is written in base 256 (GNU tar manual). */
const maxOctal = 0o77_777_777_777;

export interface TarFile {
	/** At most 100 bytes; of a directory with a slash at the end. */
	readonly name: string;
	/** Bytes. */
	readonly size: number;
}

/** Without owner and times, so that equal files give equal archives. */
export function tarHeader({name, size}: TarFile): Buffer {
	const isDirectory = name.endsWith('/');
	const block = Buffer.alloc(blockBytes);
	if (Buffer.byteLength(name) > 100) {
		throw new RangeError(`A name in an archive has at most 100 bytes: ${name}`);
	}

	block.write(name, 0);
	block.write(isDirectory ? '0000755\0' : '0000644\0', 100);
	block.write('0000000\0', 108);
	block.write('0000000\0', 116);
	if (size > maxOctal) {
		block.writeUInt8(0x80, 124);
		block.writeBigUInt64BE(BigInt(size), 128);
	} else {
		block.write(`${size.toString(8).padStart(11, '0')}\0`, 124);
	}

	block.write('00000000000\0', 136);
	block.write('        ', 148);
	block.write(isDirectory ? '5' : '0', 156);
	block.write('ustar\x0000', 257);
	const sum = block.reduce((total, byte) => total + byte, 0);
	block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
	return block;
}

/** What follows the data of a file up to the next block. */
export function tarPadding(size: number): Buffer {
	return Buffer.alloc((blockBytes - (size % blockBytes)) % blockBytes);
}

/** The end of an archive. */
export const tarEnd = Buffer.alloc(2 * blockBytes);

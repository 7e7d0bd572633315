/**
 * Parses tar archives: bytes in, entries and their data out. Does not use streams or the file system. Sources: POSIX,
 * pax ("ustar Interchange Format", "pax Extended Header"); GNU tar manual, "Basic Tar Format" (long names, base-256
 * numbers).
 */
import {AdaptorError} from '../core/errors.ts';

export interface TarEntry {
	/** The name in the archive. */
	readonly name: string;
	/** `sparse`: a file whose holes the archive omits. */
	readonly type: 'file' | 'directory' | 'link' | 'sparse' | 'other';
	/** Bytes of data after the header. */
	readonly size: number;
}

/** Data belongs to the entry before it. */
export type TarPart = {readonly entry: TarEntry} | {readonly data: Buffer};

const blockSize = 512;
/** Limit of a long name or an extended header, which are kept in memory. */
const maxMetaBytes = 1024 * 1024;
const field = {
	name: [0, 100],
	size: [124, 136],
	checksum: [148, 156],
	type: 156,
	magic: [257, 265],
	prefix: [345, 500],
} as const;
const posixMagic = 'ustar\x0000';
/** Entries without data, whatever their size field contains. */
const headerOnly = '123456';
const empty = Buffer.alloc(0);

export class TarDecoder {
	/** Bytes of an incomplete block. */
	#rest: Buffer = empty;
	/** Remaining bytes of the current entry, with the padding of its last block. */
	#data = 0;
	#padding = 0;
	/** The purpose of the data if it does not belong to an entry. */
	#meta: {readonly kind: 'x' | 'g' | 'L' | 'K'; readonly chunks: Buffer[]} | undefined;
	/** Extended fields for the next entry. */
	#longName: string | undefined;
	#next = new Map<string, string>();
	#global = new Map<string, string>();
	#isOver = false;

	/** @throws AdaptorError 'data-loss' if it is not an archive */
	*push(chunk: Buffer): Generator<TarPart> {
		let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
		this.#rest = empty;
		while (bytes.length > 0 && !this.#isOver) {
			if (this.#data > 0) {
				const data = bytes.subarray(0, this.#data);
				this.#data -= data.length;
				bytes = bytes.subarray(data.length);
				if (this.#meta === undefined) {
					yield {data};
				} else {
					this.#meta.chunks.push(data);
					this.#endOfMeta();
				}
			} else if (this.#padding > 0) {
				const skipped = Math.min(this.#padding, bytes.length);
				this.#padding -= skipped;
				bytes = bytes.subarray(skipped);
			} else if (bytes.length < blockSize) {
				this.#rest = Buffer.from(bytes);
				return;
			} else {
				const entry = this.#header(bytes.subarray(0, blockSize));
				bytes = bytes.subarray(blockSize);
				if (entry !== undefined) {
					yield {entry};
				}
			}
		}
	}

	/** Skips the data of the current entry. @returns the number of bytes that the caller leaves out */
	skip(): number {
		if (this.#meta !== undefined) {
			return 0;
		}

		const skipped = this.#data + this.#padding;
		this.#data = 0;
		this.#padding = 0;
		return skipped;
	}

	/** @throws AdaptorError 'data-loss' if the archive is truncated */
	end(): void {
		if (this.#data > 0 || this.#meta !== undefined || this.#rest.length > 0) {
			throw damaged('it is truncated');
		}
	}

	/** @returns undefined for a header that describes another one */
	#header(block: Buffer): TarEntry | undefined {
		if (block.every(byte => byte === 0)) {
			// Two such blocks end an archive; no header follows one.
			this.#isOver = true;
			return undefined;
		}

		if (!hasSound(block)) {
			throw damaged("a header's checksum is wrong");
		}

		const type = String.fromCharCode(block[field.type] ?? 0);
		if (type === 'x' || type === 'g' || type === 'L' || type === 'K') {
			const size = numberIn(block.subarray(...field.size));
			if (size > maxMetaBytes) {
				throw damaged(`an extended header has more than ${maxMetaBytes} bytes`);
			}

			this.#meta = {kind: type, chunks: []};
			this.#expect(size);
			this.#endOfMeta();
			return undefined;
		}

		const entry = this.#entry(block, type);
		this.#longName = undefined;
		this.#next = new Map();
		this.#expect(entry.size);
		return entry;
	}

	#entry(block: Buffer, type: string): TarEntry {
		const said = (key: string): string | undefined => this.#next.get(key) ?? this.#global.get(key);
		const prefix =
			block.toString('latin1', ...field.magic) === posixMagic ? textIn(block.subarray(...field.prefix)) : '';
		const name =
			said('path') ??
			this.#longName ??
			`${prefix === '' ? '' : `${prefix}/`}${textIn(block.subarray(...field.name))}`;
		const sizeText = said('size');
		const size = headerOnly.includes(type)
			? 0
			: sizeText === undefined
				? numberIn(block.subarray(...field.size))
				: decimal(sizeText);
		const isSparse = type === 'S' || [...this.#next.keys()].some(key => key.startsWith('GNU.sparse.'));
		if (isSparse) {
			return {name: said('GNU.sparse.name') ?? name, type: 'sparse', size};
		}

		const isFile = type === '0' || type === '\0' || type === '7';
		return {
			name,
			size,
			type:
				type === '5' || (isFile && name.endsWith('/'))
					? 'directory'
					: isFile
						? 'file'
						: type === '1' || type === '2'
							? 'link'
							: 'other',
		};
	}

	#expect(size: number): void {
		this.#data = size;
		this.#padding = (blockSize - (size % blockSize)) % blockSize;
	}

	#endOfMeta(): void {
		if (this.#meta === undefined || this.#data > 0) {
			return;
		}

		const {kind, chunks} = this.#meta;
		const content = Buffer.concat(chunks);
		this.#meta = undefined;
		switch (kind) {
			case 'x': {
				this.#next = records(content);
				break;
			}

			case 'g': {
				this.#global = new Map([...this.#global, ...records(content)]);
				break;
			}

			case 'L': {
				this.#longName = textIn(content);
				break;
			}

			case 'K':
		}
	}
}

/** `length key=value\n`, where length is the length of the whole record (POSIX, "pax Extended Header"). */
function records(content: Buffer): Map<string, string> {
	const found = new Map<string, string>();
	for (let at = 0; at < content.length;) {
		const space = content.indexOf(' ', at);
		const length = decimal(content.toString('latin1', at, space === -1 ? at : space));
		const equals = content.indexOf('=', space);
		const end = at + length;
		if (end > content.length || content[end - 1] !== 0x0a || equals === -1 || equals >= end) {
			throw damaged('an extended header has an invalid record');
		}

		const key = content.toString('utf8', space + 1, equals);
		// Other fields have no meaning here. Fields of a global header persist.
		if (key === 'path' || key === 'size' || key.startsWith('GNU.sparse.')) {
			found.set(key, content.toString('utf8', equals + 1, end - 1));
		}

		at = end;
	}

	return found;
}

/** The sum of the bytes of the header, with spaces in its own field; some old programs added signed bytes. */
function hasSound(block: Buffer): boolean {
	const [from, to] = field.checksum;
	let [unsigned, signed] = [0, 0];
	for (const [at, byte] of block.entries()) {
		const counted = at >= from && at < to ? 0x20 : byte;
		unsigned += counted;
		signed += counted > 127 ? counted - 256 : counted;
	}

	const said = Number.parseInt(textIn(block.subarray(from, to)).trim(), 8);
	return said === unsigned || said === signed;
}

/** Octal digits, or a big-endian number whose first bit is set. */
function numberIn(bytes: Buffer): number {
	if (((bytes[0] ?? 0) & 0x80) === 0) {
		const text = textIn(bytes).trim();
		if (!/^[0-7]*$/v.test(text)) {
			throw damaged('a header has a size that is not a number');
		}

		return text === '' ? 0 : Number.parseInt(text, 8);
	}

	// The field has twelve bytes. The first byte selects the format; six bytes are enough for every possible size.
	if (bytes[0] !== 0x80 || bytes.subarray(1, -6).some(byte => byte !== 0)) {
		throw damaged('a header has a size that is too large');
	}

	return bytes.readUIntBE(bytes.length - 6, 6);
}

function decimal(text: string): number {
	if (!/^[1-9]\d{0,14}$|^0$/v.test(text)) {
		throw damaged('an extended header has an invalid number');
	}

	return Number(text);
}

/** Up to the first NUL. */
function textIn(bytes: Buffer): string {
	const end = bytes.indexOf(0);
	return bytes.toString('utf8', 0, end === -1 ? bytes.length : end);
}

function damaged(why: string): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: `Could not read a layer of the container image: as an archive, ${why}`,
		remedy: 'Push the container image to the registry again.',
	});
}

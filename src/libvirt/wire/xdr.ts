/**
 * External Data Representation (RFC 4506) as libvirt uses it: composable codecs over a writer and a reader. Does no I/O
 * and knows no procedure. Every length is checked against its limit and against the available bytes before memory is
 * allocated.
 */
import {AdaptorError} from '../../core/errors.ts';

/** In bytes; REMOTE_STRING_MAX and VIR_NET_MESSAGE_STRING_MAX of libvirt since 1.1.0. */
export const stringLimit = 4 * 1024 * 1024;

/** Writes and reads one type. */
export interface XdrCodec<T> {
	/** @throws XdrError if the value has no encoding */
	encode(writer: XdrWriter, value: T): void;
	/** @throws XdrError if the bytes are not a value of this type, or exceed a limit */
	decode(reader: XdrReader): T;
}

/** The type of the values of a codec. */
export type XdrType<C> = C extends XdrCodec<infer T> ? T : never;

/** A value that cannot be written ('invalid-argument'), or bytes that cannot be read ('data-loss'). */
export class XdrError extends AdaptorError {
	override readonly name = 'XdrError';
}

export class XdrWriter {
	#bytes = Buffer.allocUnsafe(256);
	#length = 0;

	/** The bytes written so far; a view that later writes may change. */
	get bytes(): Buffer {
		return this.#bytes.subarray(0, this.#length);
	}

	i32(value: number): void {
		const offset = this.#grow(4);
		this.#bytes.writeInt32BE(value, offset);
	}

	u32(value: number): void {
		const offset = this.#grow(4);
		this.#bytes.writeUInt32BE(value, offset);
	}

	i64(value: bigint): void {
		const offset = this.#grow(8);
		this.#bytes.writeBigInt64BE(value, offset);
	}

	u64(value: bigint): void {
		const offset = this.#grow(8);
		this.#bytes.writeBigUInt64BE(value, offset);
	}

	/** Raw bytes, padded with zeros to a multiple of four. */
	opaque(bytes: Uint8Array): void {
		const offset = this.#grow(bytes.length + padding(bytes.length));
		this.#bytes.set(bytes, offset);
		this.#bytes.fill(0, offset + bytes.length, this.#length);
	}

	/**
	 * Reserves space and returns its offset. May replace `#bytes`: call it in a separate statement before `#bytes` is
	 * used.
	 */
	#grow(count: number): number {
		const offset = this.#length;
		this.#length += count;
		if (this.#length > this.#bytes.length) {
			const bytes = Buffer.allocUnsafe(Math.max(this.#length, this.#bytes.length * 2));
			this.#bytes.copy(bytes, 0, 0, offset);
			this.#bytes = bytes;
		}

		return offset;
	}
}

export class XdrReader {
	readonly #bytes: Buffer;
	#offset = 0;

	constructor(bytes: Buffer) {
		this.#bytes = bytes;
	}

	/** The number of unread bytes. */
	get left(): number {
		return this.#bytes.length - this.#offset;
	}

	i32(): number {
		return this.#bytes.readInt32BE(this.#take(4));
	}

	u32(): number {
		return this.#bytes.readUInt32BE(this.#take(4));
	}

	i64(): bigint {
		return this.#bytes.readBigInt64BE(this.#take(8));
	}

	u64(): bigint {
		return this.#bytes.readBigUInt64BE(this.#take(8));
	}

	/** A view, not a copy. */
	opaque(length: number): Buffer {
		const offset = this.#take(length + padding(length));
		return this.#bytes.subarray(offset, offset + length);
	}

	#take(count: number): number {
		if (count > this.left) {
			throw unreadable(`it ends ${count - this.left} bytes too early`);
		}

		const offset = this.#offset;
		this.#offset += count;
		return offset;
	}
}

/** Encodes a single value. */
export function encode<T>(codec: XdrCodec<T>, value: T): Buffer {
	const writer = new XdrWriter();
	codec.encode(writer, value);
	return writer.bytes;
}

/** Decodes a single value, which must use all of `bytes`. */
export function decode<T>(codec: XdrCodec<T>, bytes: Buffer): T {
	const reader = new XdrReader(bytes);
	const value = codec.decode(reader);
	if (reader.left > 0) {
		throw unreadable(`${reader.left} bytes follow its end`);
	}

	return value;
}

/** Also XDR's `char`, `short`, `bool` and enums, which all take four bytes. */
export const i32: XdrCodec<number> = {
	encode: (writer, value) => writer.i32(checked(value, -0x80_00_00_00, 0x7f_ff_ff_ff)),
	decode: reader => reader.i32(),
};

export const u32: XdrCodec<number> = {
	encode: (writer, value) => writer.u32(checked(value, 0, 0xff_ff_ff_ff)),
	decode: reader => reader.u32(),
};

/** libvirt's `hyper`. */
export const i64: XdrCodec<bigint> = {
	encode: (writer, value) => writer.i64(checkedBig(value, BigInt.asIntN(64, value))),
	decode: reader => reader.i64(),
};

/** libvirt's `unsigned hyper`. */
export const u64: XdrCodec<bigint> = {
	encode: (writer, value) => writer.u64(checkedBig(value, BigInt.asUintN(64, value))),
	decode: reader => reader.u64(),
};

/** UTF-8 text of at most `stringLimit` bytes. NUL is refused: C code in the daemon would see a shorter text. */
export const string: XdrCodec<string> = {
	encode(writer, value) {
		if (value.includes('\0')) {
			throw unwritable('a text contains a NUL character');
		}

		const length = Buffer.byteLength(value);
		if (length > stringLimit) {
			throw unwritable(`a text has ${length} bytes, at most ${stringLimit} are possible`);
		}

		writer.u32(length);
		writer.opaque(Buffer.from(value));
	},
	decode(reader) {
		const length = reader.u32();
		if (length > stringLimit) {
			throw unreadable(`a text has ${length} bytes, over the limit of ${stringLimit}`);
		}

		return reader.opaque(length).toString();
	},
};

/** XDR's optional data, `T *`. */
export function optional<T>(codec: XdrCodec<T>): XdrCodec<T | null> {
	return {
		encode(writer, value) {
			writer.u32(value === null ? 0 : 1);
			if (value !== null) {
				codec.encode(writer, value);
			}
		},
		decode(reader) {
			const present = reader.u32();
			if (present > 1) {
				throw unreadable(`an optional value is marked ${present} instead of 0 or 1`);
			}

			return present === 1 ? codec.decode(reader) : null;
		},
	};
}

/** XDR's variable-length array, `T name<limit>`. */
export function list<T>(codec: XdrCodec<T>, limit: number): XdrCodec<readonly T[]> {
	return {
		encode(writer, values) {
			if (values.length > limit) {
				throw unwritable(`a list has ${values.length} items, at most ${limit} are possible`);
			}

			writer.u32(values.length);
			for (const value of values) {
				codec.encode(writer, value);
			}
		},
		decode(reader) {
			const count = reader.u32();
			// Every XDR type that is used in lists takes at least four bytes.
			if (count > limit || count * 4 > reader.left) {
				throw unreadable(
					`a list claims ${count} items; the limit is ${limit} and ${reader.left} bytes are left`,
				);
			}

			return Array.from({length: count}, () => codec.decode(reader));
		},
	};
}

/** XDR's fixed-length opaque data. Decoded as a copy, so that it does not keep the packet in memory. */
export function opaque(length: number): XdrCodec<Buffer> {
	return {
		encode(writer, value) {
			if (value.length !== length) {
				throw unwritable(`opaque data has ${value.length} bytes instead of ${length}`);
			}

			writer.opaque(value);
		},
		decode: reader => Buffer.from(reader.opaque(length)),
	};
}

/** XDR's `char name[length]`, four bytes per character: text of single bytes that ends at the first NUL. */
export function chars(length: number): XdrCodec<string> {
	return {
		encode(writer, value) {
			const bytes = Buffer.from(value, 'latin1');
			if (bytes.length > length) {
				throw unwritable(`a text has ${bytes.length} characters, at most ${length} are possible`);
			}

			for (let index = 0; index < length; index++) {
				writer.i32(bytes[index] ?? 0);
			}
		},
		decode(reader) {
			const bytes = Buffer.from(Array.from({length}, () => reader.i32()));
			const end = bytes.indexOf(0);
			return bytes.toString('latin1', 0, end < 0 ? length : end);
		},
	};
}

/** XDR's `struct`: the fields in the order of the object's keys. */
export function struct<Fields extends Readonly<Record<string, XdrCodec<unknown>>>>(
	fields: Fields,
): XdrCodec<{readonly [Name in keyof Fields]: XdrType<Fields[Name]>}> {
	type Value = {readonly [Name in keyof Fields]: XdrType<Fields[Name]>};
	const entries = Object.entries(fields);
	return {
		encode(writer, value) {
			for (const [name, codec] of entries) {
				codec.encode(writer, value[name]);
			}
		},
		decode: reader => Object.fromEntries(entries.map(([name, codec]) => [name, codec.decode(reader)])) as Value,
	};
}

/** No data: for procedures without arguments or without a result. */
export const nothing: XdrCodec<undefined> = {
	encode: () => undefined,
	decode: () => undefined,
};

function padding(length: number): number {
	return (4 - (length % 4)) % 4;
}

function checked(value: number, minimum: number, maximum: number): number {
	if (!Number.isInteger(value) || value < minimum || value > maximum) {
		throw unwritable(`${value} is not a whole number from ${minimum} to ${maximum}`);
	}

	return value;
}

function checkedBig(value: bigint, wrapped: bigint): bigint {
	if (value !== wrapped) {
		throw unwritable(`${value.toString()} does not fit into 64 bits`);
	}

	return value;
}

function unwritable(reason: string): XdrError {
	return new XdrError({code: 'invalid-argument', what: `A value cannot be sent to libvirt: ${reason}`});
}

function unreadable(reason: string): XdrError {
	return new XdrError({code: 'data-loss', what: `A message of libvirt cannot be read: ${reason}`});
}

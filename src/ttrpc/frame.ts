/**
 * ttrpc frames: a ten-byte header, big-endian, then the bytes of the message (containerd/ttrpc, PROTOCOL.md, "Message
 * Frame"). Converts bytes to frames, without sockets, timers, streams or protobuf.
 */

export const headerLength = 10;

/** The largest message of the protocol, without its header: 4 MiB. */
export const maxMessageLength = 4 * 1024 * 1024;

/** All other types are reserved; receivers ignore them. */
export const frameType = {request: 1, response: 2, data: 3} as const;

export const frameFlag = {
	/** No more data will come from the sender. */
	remoteClosed: 0x01,
	/** The sender has more to send on this stream. */
	remoteOpen: 0x02,
	/** The empty message is not data. */
	noData: 0x04,
} as const;

/** The header without the length. */
export interface FrameHeader {
	/** Unsigned, 32 bits; odd when the client opened the stream. */
	readonly streamId: number;
	/** One of `frameType`, or a byte that is reserved. */
	readonly type: number;
	/** Bits of `frameFlag`; none on unary calls. */
	readonly flags: number;
}

/** A whole frame. If possible, its bytes are a view of the received chunk; keeping them keeps the chunk in memory. */
export class Frame implements FrameHeader {
	readonly streamId: number;
	readonly type: number;
	readonly flags: number;
	/** As received, header included. */
	readonly bytes: Buffer;

	constructor(bytes: Buffer) {
		this.streamId = bytes.readUInt32BE(4);
		this.type = bytes.readUInt8(8);
		this.flags = bytes.readUInt8(9);
		this.bytes = bytes;
	}

	/** The same frame on another stream, as bytes: a copy. */
	onStream(streamId: number): Buffer {
		const bytes = Buffer.from(this.bytes);
		bytes.writeUInt32BE(streamId, 4);
		return bytes;
	}

	/** The message without the header: a view, not a copy. */
	get message(): Buffer {
		return this.bytes.subarray(headerLength);
	}
}

/**
 * A frame over the limit. It is reported when its header is known; its message is skipped on arrival and never stored.
 */
export class OversizedFrame implements FrameHeader {
	readonly streamId: number;
	readonly type: number;
	readonly flags: number;
	/** The length in the header, in bytes. */
	readonly messageLength: number;

	constructor(header: Buffer) {
		this.messageLength = header.readUInt32BE(0);
		this.streamId = header.readUInt32BE(4);
		this.type = header.readUInt8(8);
		this.flags = header.readUInt8(9);
	}
}

/**
 * Splits a stream of bytes into frames, independent of the chunks. A frame within one chunk is a view of that chunk; a
 * frame that spans chunks is copied once, into a buffer that is allocated after its length was checked.
 */
export class FrameDecoder {
	readonly #maxMessageLength: number;
	/** The first bytes of an incomplete header. */
	readonly #header = Buffer.alloc(headerLength);
	#headerFilled = 0;
	/** An incomplete frame. */
	#partial: Buffer | undefined;
	#partialFilled = 0;
	/** Remaining bytes of an oversized message. */
	#toSkip = 0;

	/** @param limit bytes of the largest accepted message, without its header */
	constructor(limit: number = maxMessageLength) {
		this.#maxMessageLength = limit;
	}

	/** Number of bytes of an incomplete header or frame; 0 at the end of a complete conversation. */
	get heldBytes(): number {
		return this.#headerFilled + this.#partialFilled;
	}

	/**
	 * The frames that this chunk completes, in order. The chunk must not be changed afterwards.
	 */
	push(chunk: Uint8Array): Array<Frame | OversizedFrame> {
		const frames: Array<Frame | OversizedFrame> = [];
		const bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
		let position = 0;
		while (position < bytes.length) {
			if (this.#toSkip > 0) {
				const skipped = Math.min(this.#toSkip, bytes.length - position);
				this.#toSkip -= skipped;
				position += skipped;
			} else if (this.#partial !== undefined) {
				const copied = bytes.copy(this.#partial, this.#partialFilled, position);
				this.#partialFilled += copied;
				position += copied;
				if (this.#partialFilled === this.#partial.length) {
					frames.push(new Frame(this.#partial));
					this.#partial = undefined;
					this.#partialFilled = 0;
				}
			} else if (this.#headerFilled > 0 || bytes.length - position < headerLength) {
				const copied = bytes.copy(this.#header, this.#headerFilled, position);
				this.#headerFilled += copied;
				position += copied;
				if (this.#headerFilled === headerLength) {
					this.#headerFilled = 0;
					frames.push(...this.#begin(this.#header));
				}
			} else {
				const end = position + headerLength + bytes.readUInt32BE(position);
				if (end <= bytes.length && end - position - headerLength <= this.#maxMessageLength) {
					frames.push(new Frame(bytes.subarray(position, end)));
					position = end;
				} else {
					frames.push(...this.#begin(bytes.subarray(position, position + headerLength)));
					position += headerLength;
				}
			}
		}

		return frames;
	}

	/**
	 * Handles a header whose message is not, or not completely, in the same chunk.
	 * @returns the frame if the header completes it or shows that it is over the limit
	 */
	#begin(header: Buffer): Array<Frame | OversizedFrame> {
		const messageLength = header.readUInt32BE(0);
		if (messageLength > this.#maxMessageLength) {
			this.#toSkip = messageLength;
			return [new OversizedFrame(header)];
		}

		if (messageLength === 0) {
			return [new Frame(Buffer.from(header))];
		}

		// Not from the buffer pool: a separate allocation uses no physical memory until data is written to it, so
		// announced bytes that never arrive cost nothing.
		this.#partial = Buffer.allocUnsafeSlow(headerLength + messageLength);
		this.#partialFilled = header.copy(this.#partial);
		return [];
	}
}

/** The bytes of a frame. The message is copied; the caller checks its length. */
export function encodeFrame({streamId, type, flags}: FrameHeader, message: Uint8Array): Buffer {
	const bytes = Buffer.allocUnsafe(headerLength + message.length);
	bytes.writeUInt32BE(message.length, 0);
	bytes.writeUInt32BE(streamId, 4);
	bytes.writeUInt8(type, 8);
	bytes.writeUInt8(flags, 9);
	bytes.set(message, headerLength);
	return bytes;
}

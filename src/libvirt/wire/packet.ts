/**
 * libvirt's packets: `u32 length` (including itself), a header of six words, a body. Bytes in, packets out. Source:
 * libvirt, src/rpc/virnetprotocol.x. Knows no sockets, timers or procedures.
 */
import {AdaptorError} from '../../core/errors.ts';

export const remoteProgram = 0x20_00_80_86;
export const keepaliveProgram = 0x6b_65_65_70;

/** virNetMessageType, without calls and replies with file descriptors, which a client must request. */
export const messageType = {call: 0, reply: 1, message: 2, stream: 3, hole: 6} as const;
/** virNetMessageStatus. */
export const messageStatus = {ok: 0, error: 1, continue: 2} as const;

export type MessageType = (typeof messageType)[keyof typeof messageType];
export type MessageStatus = (typeof messageStatus)[keyof typeof messageStatus];

export interface PacketHeader {
	readonly program: number;
	/** The version of the program; 1 for both programs. */
	readonly version: number;
	readonly procedure: number;
	readonly type: MessageType;
	/** Chosen by the caller; 0 for messages without a call. */
	readonly serial: number;
	readonly status: MessageStatus;
}

export interface Packet extends PacketHeader {
	/** May be a view of the received chunk. */
	readonly body: Buffer;
}

/** The size of the length word and the header in bytes. */
const headerLength = 28;
/** VIR_NET_MESSAGE_MAX, without the length word: 32 MiB in libvirt 9.0, 16 MiB in older versions. */
export const messageLimit = 32 * 1024 * 1024;
/**
 * The body of one stream packet: VIR_NET_MESSAGE_LEGACY_PAYLOAD_MAX. Every libvirt accepts it, and it is the fastest
 * size measured.
 */
export const streamPayload = 262_120;

/** The daemon violated the protocol; the rest of its data cannot be parsed. */
export class PacketError extends AdaptorError {
	override readonly name = 'PacketError';

	constructor(reason: string) {
		super({
			code: 'data-loss',
			what: `The data from the libvirt daemon violates the libvirt protocol: ${reason}`,
			remedy: 'Check that the URI refers to a libvirt daemon, and that nothing else writes to the connection, such as a banner of a login shell.',
		});
	}
}

/** @throws AdaptorError 'invalid-argument' for a body over the limit */
export function encodePacket(header: PacketHeader, body: Uint8Array): Buffer {
	const length = headerLength + body.length;
	if (length - 4 > messageLimit) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: `A message of ${length} bytes exceeds the libvirt limit of ${messageLimit}`,
		});
	}

	const bytes = Buffer.allocUnsafe(length);
	bytes.writeUInt32BE(length, 0);
	bytes.writeUInt32BE(header.program, 4);
	bytes.writeUInt32BE(header.version, 8);
	bytes.writeInt32BE(header.procedure, 12);
	bytes.writeUInt32BE(header.type, 16);
	bytes.writeUInt32BE(header.serial, 20);
	bytes.writeUInt32BE(header.status, 24);
	bytes.set(body, headerLength);
	return bytes;
}

export class PacketDecoder {
	readonly #limit: number;
	/** The first `#held` bytes of an incomplete packet. */
	#buffer = Buffer.alloc(0);
	#held = 0;

	/** @param limit maximum size of a message in bytes, without its length word */
	constructor(limit = messageLimit) {
		this.#limit = limit;
	}

	/**
	 * Returns the packets that this chunk completes. Memory grows with the received bytes, never with the length in a
	 * header.
	 * @throws PacketError after which the decoder must not be used; earlier packets of the same chunk are lost with the
	 * connection
	 */
	push(chunk: Buffer): Packet[] {
		const packets: Packet[] = [];
		let rest = chunk;
		while (rest.length > 0) {
			if (this.#held === 0) {
				const length = rest.length >= 4 ? this.#packetLength(rest) : 4;
				if (rest.length < length) {
					this.#hold(rest, length);
					break;
				}

				packets.push(decodePacket(rest.subarray(0, length)));
				rest = rest.subarray(length);
				continue;
			}

			// Fill up to the length word first, then to the length.
			const wanted = this.#held < 4 ? 4 : this.#packetLength(this.#buffer);
			const part = rest.subarray(0, wanted - this.#held);
			this.#hold(part, wanted);
			rest = rest.subarray(part.length);
			if (wanted > 4 && this.#held === wanted) {
				const bytes = this.#buffer.subarray(0, wanted);
				this.#buffer = Buffer.alloc(0);
				this.#held = 0;
				packets.push(decodePacket(bytes));
			} else if (this.#held === 4) {
				this.#packetLength(this.#buffer); // Checks the length now, without waiting for the next byte.
			}
		}

		return packets;
	}

	#packetLength(bytes: Buffer): number {
		const length = bytes.readUInt32BE(0);
		if (length < headerLength || length - 4 > this.#limit) {
			throw new PacketError(
				`a packet claims a length of ${length} bytes; ${headerLength} to ${this.#limit + 4} are possible`,
			);
		}

		return length;
	}

	#hold(bytes: Buffer, wanted: number): void {
		const held = this.#held + bytes.length;
		if (held > this.#buffer.length) {
			// At least doubled, so that the chunks of a packet are not copied each time. Half a MiB holds any stream
			// packet.
			const buffer = Buffer.allocUnsafe(
				Math.max(held, Math.min(wanted, Math.max(this.#buffer.length * 2, 512 * 1024))),
			);
			this.#buffer.copy(buffer, 0, 0, this.#held);
			this.#buffer = buffer;
		}

		bytes.copy(this.#buffer, this.#held);
		this.#held = held;
	}
}

function decodePacket(bytes: Buffer): Packet {
	const type = bytes.readUInt32BE(16);
	const status = bytes.readUInt32BE(24);
	if (!isType(type) || !isStatus(status)) {
		throw new PacketError(`a packet has type ${type} and status ${status}`);
	}

	return {
		program: bytes.readUInt32BE(4),
		version: bytes.readUInt32BE(8),
		procedure: bytes.readInt32BE(12),
		type,
		serial: bytes.readUInt32BE(20),
		status,
		body: bytes.subarray(headerLength),
	};
}

function isType(value: number): value is MessageType {
	return value <= messageType.stream || value === messageType.hole;
}

function isStatus(value: number): value is MessageStatus {
	return value <= messageStatus.continue;
}

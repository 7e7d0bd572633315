/**
 * Bytes that must be the same on every machine: many cases for each codec and each disk image, the same on every run. A
 * case holds what was encoded and what was read back from it, so that it differs when either depends on the byte order.
 */
import {createHash} from 'node:crypto';
import {loadContract} from '../../src/api/contract.ts';
import {thinQcow2} from '../../src/image/qcow2.ts';
import {TarDecoder} from '../../src/image/tar.ts';
import {remoteError} from '../../src/libvirt/wire/errors.ts';
import {
	encodePacket,
	keepaliveProgram,
	messageStatus,
	messageType,
	PacketDecoder,
	remoteProgram,
} from '../../src/libvirt/wire/packet.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {decode, encode, i32, i64, u32, u64, XdrReader, type XdrCodec} from '../../src/libvirt/wire/xdr.ts';
import {Secret} from '../../src/core/log.ts';
import {networkOf, prefixContains} from '../../src/core/ipv4.ts';
import {cidataIso} from '../../src/podvm/cidata.ts';
import {formatUuid, VmSlots} from '../../src/podvm/vm-slots.ts';
import {readImageFormat} from '../../src/vm-image/judgement.ts';
import {encodeFrame, FrameDecoder} from '../../src/ttrpc/frame.ts';
import {decodeRequest, decodeResponse, encodeRequest, encodeResponse} from '../../src/ttrpc/message.ts';
import {ziplDisk} from '../lab/zipl.ts';
import {bytesOf, golden} from '../libvirt/golden.ts';
import {framesOf, recorded, recordings} from '../ttrpc/conversation.ts';

type Cases = Iterable<Uint8Array | string>;

/** Numbers that look random and are the same everywhere. */
class Source {
	readonly #bytes: Buffer;
	#position = 0;

	constructor(seed: string) {
		this.#bytes = createHash('shake256', {outputLength: 1 << 20})
			.update(seed)
			.digest();
	}

	bytes(length: number): Buffer {
		if (this.#position + length > this.#bytes.length) {
			this.#position %= 251; // another alignment than before
		}

		const start = this.#position;
		this.#position += length;
		return this.#bytes.subarray(start, this.#position);
	}

	/** 0 to `limit` - 1. */
	below(limit: number): number {
		return this.bytes(4).readUInt32BE() % limit;
	}

	/** Without surrogates and NUL. */
	text(maxLength: number): string {
		return Array.from(this.bytes(this.below(maxLength + 1)), (byte, index) =>
			String.fromCodePoint(index % 3 === 2 ? 0xa0 + byte * 7 : 0x20 + (byte % 95)),
		).join('');
	}

	i64(): bigint {
		return this.bytes(8).readBigInt64BE();
	}

	/** Cuts bytes into chunks of any size. */
	*chunks(bytes: Buffer): Generator<Buffer> {
		for (let position = 0; position < bytes.length;) {
			const length = 1 + this.below(40);
			yield bytes.subarray(position, position + length);
			position += length;
		}
	}
}

/**
 * Reads values of any type out of nowhere. Counts, lengths and marks are 0 or 1, which all types understand; other
 * numbers are anything.
 */
class InventingReader extends XdrReader {
	readonly #source: Source;

	constructor(source: Source) {
		super(Buffer.alloc(0));
		this.#source = source;
	}

	override get left(): number {
		return Infinity;
	}

	override i32(): number {
		return this.#source.bytes(4).readInt32BE();
	}

	override u32(): number {
		return this.#source.below(2);
	}

	override i64(): bigint {
		return this.#source.i64();
	}

	override u64(): bigint {
		return this.#source.bytes(8).readBigUInt64BE();
	}

	override opaque(length: number): Buffer {
		return Buffer.from(this.#source.bytes(length).map(byte => 0x20 + (byte % 95)));
	}
}

function told(value: unknown): string {
	return JSON.stringify([value], (_name, member: unknown) =>
		typeof member === 'bigint' ? `${member.toString()}n` : member,
	);
}

function* roundTrip<T>(codec: XdrCodec<T>, value: T): Cases {
	const bytes = encode(codec, value);
	yield bytes;
	yield told(decode(codec, bytes));
}

export const vectors: Readonly<Record<string, () => Cases>> = {
	*'ttrpc frames'() {
		const source = new Source('frames');
		const sent = Array.from({length: 500}, () =>
			encodeFrame(
				{streamId: source.bytes(4).readUInt32BE(), type: source.below(256), flags: source.below(256)},
				source.bytes(source.below(300)),
			),
		);
		yield* sent;
		const decoder = new FrameDecoder();
		for (const chunk of source.chunks(Buffer.concat(sent))) {
			for (const {streamId, type, flags} of decoder.push(chunk)) {
				yield told({streamId, type, flags});
			}
		}
	},
	*'recorded ttrpc messages'() {
		for (const name of recordings) {
			for (const {streamId, type, flags, message} of framesOf(recorded(name))) {
				const isRequest = type === 1;
				yield encodeFrame(
					{streamId, type, flags},
					isRequest ? encodeRequest(decodeRequest(message)) : encodeResponse(decodeResponse(message)),
				);
				yield told(isRequest ? decodeRequest(message) : decodeResponse(message));
			}
		}
	},
	*'ttrpc messages'() {
		const source = new Source('messages');
		for (let number = 0; number < 300; number++) {
			const request = encodeRequest({
				service: source.text(20),
				method: source.text(20),
				payload: source.bytes(source.below(100)),
				timeoutNano: source.i64(),
				metadata: Array.from({length: source.below(3)}, () => ({key: source.text(9), value: source.text(9)})),
			});
			const response = encodeResponse({
				status: {code: source.below(17), message: source.text(30), details: []},
				payload: source.bytes(source.below(100)),
			});
			yield* [request, told(decodeRequest(request)), response, told(decodeResponse(response))];
		}
	},
	*'pod VM images'() {
		for (const virtualSize of [512n, 6n << 30n, (1n << 46n) - 512n]) {
			const image = thinQcow2(
				{path: `/var/lib/libvirt/images/podvm-${virtualSize}.qcow2`, format: 'qcow2'},
				virtualSize,
			);
			// An image with a backing file is refused as an upload; without one it is read.
			const whole = Buffer.from(image).fill(0, 8, 20);
			yield* [image, told(readImageFormat(whole, BigInt(image.length)))];
		}

		const source = new Source('images');
		const archive = Buffer.alloc(4 * 512);
		archive.write('image/podvm.qcow2');
		// A number of twelve bytes, as GNU tar writes what is too large for octal digits.
		Buffer.from([0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0xe8]).copy(archive, 124);
		archive.write('0', 156);
		archive.fill(' ', 148, 156);
		archive.write(
			archive
				.subarray(0, 512)
				.reduce((sum, byte) => sum + byte, 0)
				.toString(8)
				.padStart(6, '0'),
			148,
		);
		source.bytes(1000).copy(archive, 512);
		const decoder = new TarDecoder();
		for (const chunk of source.chunks(archive)) {
			for (const part of decoder.push(chunk)) {
				yield 'entry' in part ? told(part.entry) : part.data;
			}
		}
	},
	*'hypervisor API messages'() {
		const {hypervisor, podVmInfo} = loadContract();
		const source = new Source('hypervisor');
		const text = source.text(40);
		const messages = {
			id: text,
			annotations: {[text]: source.text(90)},
			networkNamespacePath: text,
			version: text,
			PodName: text,
			PodNamespace: text,
			Wait: true,
		};
		for (const {path, requestSerialize, requestDeserialize} of [
			...Object.values(hypervisor),
			...Object.values(podVmInfo),
		]) {
			const bytes = requestSerialize(messages);
			yield* [path, bytes, told(requestDeserialize(bytes))];
		}

		const [recording] = framesOf(recorded('createvm.request.bin'));
		yield told(recording && hypervisor['CreateVM']?.requestDeserialize(decodeRequest(recording.message).payload));
	},
	*'libvirt packets'() {
		const source = new Source('packets');
		const known = Object.keys(golden).map(name => bytesOf(name as keyof typeof golden));
		const made = Array.from({length: 300}, () =>
			encodePacket(
				{
					program: source.below(2) === 0 ? remoteProgram : keepaliveProgram,
					version: 1,
					procedure: source.bytes(4).readInt32BE(),
					type: messageType.reply,
					serial: source.bytes(4).readUInt32BE(),
					status: messageStatus.ok,
				},
				source.bytes(source.below(200)),
			),
		);
		yield* made;
		const decoder = new PacketDecoder();
		for (const chunk of source.chunks(Buffer.concat([...known, ...made]))) {
			for (const packet of decoder.push(chunk)) {
				yield encodePacket(packet, packet.body);
				yield told(packet);
			}
		}
	},
	*'libvirt procedures'() {
		const source = new Source('procedures');
		const all = Object.values(procedures).flatMap(({args, result}): Array<XdrCodec<unknown>> => [
			args as XdrCodec<unknown>,
			result as XdrCodec<unknown>,
		]);
		for (const codec of [...all, remoteError as XdrCodec<unknown>]) {
			for (let number = 0; number < 20; number++) {
				yield* roundTrip(codec, codec.decode(new InventingReader(source)));
			}
		}
	},
	*'XDR numbers'() {
		const source = new Source('numbers');
		for (let bit = 0n; bit < 64n; bit++) {
			for (const value of [1n << bit, (1n << bit) - 1n, source.i64() >> (63n - bit)]) {
				yield* roundTrip(u64, BigInt.asUintN(64, value));
				yield* roundTrip(i64, BigInt.asIntN(64, value));
				yield* roundTrip(u32, Number(BigInt.asUintN(32, value)));
				yield* roundTrip(i32, Number(BigInt.asIntN(32, value)));
			}
		}
	},
	*'MACs, UUIDs and prefixes'() {
		const source = new Source('addresses');
		for (let number = 0; number < 256; number++) {
			const slots = new VmSlots(source.text(10), source.text(10));
			const {uuid, mac} = slots.at(number);
			const address = source.bytes(4).join('.');
			const prefix = networkOf(`${address}/${source.below(33)}`);
			yield told([
				formatUuid(uuid),
				mac,
				slots.numberOf(uuid),
				prefix,
				prefixContains(prefix, address),
				prefixContains(prefix, source.bytes(4).join('.')),
			]);
		}
	},
	*'cloud-init disks'() {
		const source = new Source('cidata');
		for (let number = 0; number < 20; number++) {
			const files = Array.from({length: number % 4}, (_, index) => ({
				path: `/run/peerpod/${index}`,
				content: new Secret(source.text(number * 400)),
			}));
			yield cidataIso(
				`podvm-${number}-0123abcd`,
				files,
				new Date(Date.UTC(2026, number % 12, 1 + number, number, 59, 58, 999)),
			);
		}
	},
	*'boot disks'() {
		const source = new Source('disk');
		for (const blocks of [1, 2, 0x1_00_01]) {
			const kernel = Buffer.from(Array.from({length: 0x1_10_00}, (_, index) => index % 251));
			kernel.write('S390EP', 0x1_00_08, 'latin1');
			kernel.writeBigUInt64BE(4096n, 0x1_04_30);
			const initramfs = Buffer.alloc(blocks * 512 - 1);
			source.bytes(400).copy(initramfs, initramfs.length - 400);
			yield ziplDisk({kernel, initramfs, commandLine: `quiet blocks=${blocks}`});
		}
	},
};

export function digestOf(cases: Cases): string {
	const hash = createHash('sha256');
	for (const each of cases) {
		const bytes = typeof each === 'string' ? Buffer.from(each) : each;
		hash.update(`${bytes.length}\n`).update(bytes);
	}

	return hash.digest('hex');
}

import test from 'ava';
import fc from 'fast-check';
import {encodePacket, messageLimit, PacketDecoder, PacketError, type Packet} from '../../../src/libvirt/wire/packet.ts';
import {bytesOf, golden} from '../golden.ts';

const names = Object.keys(golden) as ReadonlyArray<keyof typeof golden>;

const packets = fc.record({
	program: fc.nat(0xff_ff_ff_ff),
	version: fc.nat(),
	procedure: fc.integer(),
	type: fc.constantFrom(0, 1, 2, 3),
	serial: fc.nat(0xff_ff_ff_ff),
	status: fc.constantFrom(0, 1, 2),
	body: fc.uint8Array({maxLength: 600}).map(bytes => Buffer.from(bytes)),
}) as fc.Arbitrary<Packet>;

function decodeInChunks(bytes: Buffer, cuts: readonly number[], decoder = new PacketDecoder()): Packet[] {
	const ends = [...new Set(cuts.map(cut => cut % (bytes.length + 1)))].sort((a, b) => a - b);
	const chunks = [...ends, bytes.length].map((end, index) => bytes.subarray(ends[index - 1] ?? 0, end));
	return chunks.flatMap(chunk => [...decoder.push(Buffer.from(chunk))]);
}

for (const name of names) {
	test(`the recorded packet ${name} is decoded and encoded to the same bytes`, t => {
		const [packet, ...rest] = [...new PacketDecoder().push(bytesOf(name))];
		t.is(rest.length, 0);
		t.deepEqual(packet && encodePacket(packet, packet.body), bytesOf(name));
	});
}

test('a recorded header says what libvirt meant', t => {
	const [packet] = [...new PacketDecoder().push(bytesOf('lookupError'))];
	const {body, ...header} = packet ?? t.fail();
	t.deepEqual(header, {program: 0x20_00_80_86, version: 1, procedure: 23, type: 1, serial: 6, status: 1});
	t.is(body.length, 0x70 - 28);
});

test('any chunking gives the same packets', t => {
	fc.assert(
		fc.property(fc.array(packets, {maxLength: 6}), fc.array(fc.nat(5000), {maxLength: 20}), (sent, cuts) => {
			const bytes = Buffer.concat(sent.map(packet => encodePacket(packet, packet.body)));
			t.deepEqual(decodeInChunks(bytes, cuts), sent);
		}),
	);
	t.pass();
});

test('byte by byte gives the same packets', t => {
	const bytes = Buffer.concat(names.map(name => bytesOf(name)));
	t.is(decodeInChunks(bytes, Array.from(bytes.keys())).length, names.length);
});

test('a large packet in small chunks arrives whole', t => {
	const body = Buffer.alloc(3_000_000, 'xyz');
	const bytes = encodePacket({program: 1, version: 1, procedure: 1, type: 3, serial: 1, status: 2}, body);
	const received = decodeInChunks(
		bytes,
		Array.from({length: 3000}, (_, index) => index * 1000),
	);
	t.true(received[0]?.body.equals(body));
});

for (const [what, length] of [
	['over the limit', messageLimit + 5],
	['of four GiB', 0xff_ff_ff_ff],
	['shorter than a header', 27],
	['of zero', 0],
] as const) {
	test(`a length ${what} is refused as soon as its four bytes are there`, t => {
		const word = Buffer.alloc(4);
		word.writeUInt32BE(length);
		const decoder = new PacketDecoder();
		t.deepEqual([...decoder.push(word.subarray(0, 3))], []);
		t.throws(() => [...decoder.push(word.subarray(3))], {instanceOf: PacketError});
	});
}

test('an announced length without data uses no memory', t => {
	const word = Buffer.alloc(32);
	word.writeUInt32BE(messageLimit);
	const before = process.memoryUsage().arrayBuffers;
	const decoders = Array.from({length: 40}, () => new PacketDecoder());
	for (const decoder of decoders) {
		t.deepEqual([...decoder.push(word)], []);
	}

	t.true(process.memoryUsage().arrayBuffers - before < 40 * 1024 * 1024, 'half a MiB each at most, not 32');
});

test('a body over the limit is refused before it is copied', t => {
	t.throws(
		() =>
			encodePacket(
				{program: 1, version: 1, procedure: 1, type: 0, serial: 1, status: 0},
				Buffer.alloc(messageLimit),
			),
		{message: /exceeds the libvirt limit/},
	);
});

test('hostile bytes in hostile chunks give packets or a PacketError, nothing else', t => {
	fc.assert(
		fc.property(
			fc.array(
				fc.oneof(
					fc.uint8Array({maxLength: 80}),
					packets.map(packet => encodePacket(packet, packet.body)),
				),
			),
			fc.array(fc.nat(5000)),
			(parts, cuts) => {
				try {
					decodeInChunks(Buffer.concat(parts), cuts);
				} catch (error) {
					t.true(error instanceof PacketError, String(error));
				}
			},
		),
		{numRuns: 5000},
	);
	t.pass();
});

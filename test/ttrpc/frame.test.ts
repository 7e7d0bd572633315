import test from 'ava';
import * as fc from 'fast-check';
import {
	encodeFrame,
	Frame,
	FrameDecoder,
	headerLength,
	maxMessageLength,
	OversizedFrame,
} from '../../src/ttrpc/frame.ts';
import {cut, decodeAll, framesOf, recorded, recordings} from './conversation.ts';

/** Comparable, whichever buffers the frames lie in. */
const plain = (frames: ReadonlyArray<Frame | OversizedFrame>): unknown[] =>
	frames.map(frame =>
		frame instanceof Frame
			? {streamId: frame.streamId, type: frame.type, flags: frame.flags, bytes: frame.bytes.toString('hex')}
			: {streamId: frame.streamId, type: frame.type, flags: frame.flags, messageLength: frame.messageLength},
	);

for (const name of recordings) {
	test(`the frames of ${name} encode to the recorded bytes`, t => {
		const bytes = recorded(name);
		const frames = framesOf(bytes);
		t.true(frames.length > 0);
		t.deepEqual(Buffer.concat(frames.map(frame => encodeFrame(frame, frame.message))), bytes);
		t.deepEqual(Buffer.concat(frames.map(frame => frame.bytes)), bytes);
	});

	test(`${name} decodes alike byte by byte`, t => {
		const bytes = recorded(name);
		const decoder = new FrameDecoder();
		t.deepEqual(
			plain(
				decodeAll(
					[...bytes].map(byte => Buffer.of(byte)),
					decoder,
				),
			),
			plain(framesOf(bytes)),
		);
		t.is(decoder.heldBytes, 0);
	});
}

test('the recorded agent conversation has streams 1 to 65, all odd', t => {
	t.deepEqual(
		framesOf(recorded('agent.client.bin')).map(frame => frame.streamId),
		Array.from({length: 33}, (_, index) => index * 2 + 1),
	);
});

test('a header is read as big-endian', t => {
	const [frame] = framesOf(Buffer.from('000000020000010102' + '04' + 'abcd', 'hex'));
	t.is(frame?.streamId, 257);
	t.is(frame?.type, 2);
	t.is(frame?.flags, 4);
	t.deepEqual(frame?.message, Buffer.from('abcd', 'hex'));
});

test('stream ids use all 32 bits, unsigned', t => {
	const [frame] = framesOf(encodeFrame({streamId: 0xff_ff_ff_ff, type: 1, flags: 0}, Buffer.of(1)));
	t.is(frame?.streamId, 0xff_ff_ff_ff);
});

test('any chunking gives the same frames, oversized ones included', t => {
	const limit = 64;
	const wire = fc.array(
		fc.record({
			streamId: fc.nat(0xff_ff_ff_ff),
			type: fc.nat(255),
			flags: fc.nat(255),
			message: fc.oneof(
				{weight: 4, arbitrary: fc.uint8Array({maxLength: limit})},
				{weight: 1, arbitrary: fc.uint8Array({minLength: limit + 1, maxLength: 200})},
			),
		}),
		{maxLength: 12},
	);
	fc.assert(
		fc.property(wire, fc.array(fc.double({min: 0, max: 1, noNaN: true}), {maxLength: 40}), (sent, fractions) => {
			const bytes = Buffer.concat(sent.map(frame => encodeFrame(frame, frame.message)));
			const decoder = new FrameDecoder(limit);
			const expected = sent.map(({streamId, type, flags, message}) =>
				message.length > limit
					? {streamId, type, flags, messageLength: message.length}
					: {streamId, type, flags, bytes: encodeFrame({streamId, type, flags}, message).toString('hex')},
			);
			t.deepEqual(plain(decodeAll(cut(bytes, fractions), decoder)), expected);
			t.is(decoder.heldBytes, 0);
		}),
	);
});

test('frames within one chunk are views of it', t => {
	const chunk = recorded('agent.client.bin');
	t.true(
		framesOf(chunk).every(frame => frame.bytes.buffer === chunk.buffer && frame.message.buffer === chunk.buffer),
	);
});

test('an oversized frame is reported when its header ends, and the frame after it is whole', t => {
	const decoder = new FrameDecoder();
	const header = encodeFrame({streamId: 7, type: 1, flags: 0}, Buffer.alloc(0));
	header.writeUInt32BE(maxMessageLength + 1);
	t.deepEqual(decodeAll([header], decoder), [new OversizedFrame(header)]);
	const next = encodeFrame({streamId: 9, type: 1, flags: 0}, Buffer.from('next'));
	const chunk = Buffer.alloc(64 * 1024);
	for (let left = maxMessageLength + 1; left > 0; left -= chunk.length) {
		t.deepEqual(decodeAll([chunk.subarray(0, left)], decoder), []);
		t.is(decoder.heldBytes, 0);
	}

	t.deepEqual(plain(decodeAll([next], decoder)), plain([new Frame(next)]));
});

test('frames that nobody iterates over do not disturb what comes after them', t => {
	const decoder = new FrameDecoder();
	const bytes = Buffer.concat([1, 3, 5].map(streamId => encodeFrame({streamId, type: 1, flags: 0}, Buffer.of(1))));
	const [first] = decoder.push(bytes.subarray(0, -1));
	t.is(first?.streamId, 1);
	t.deepEqual(
		decoder.push(bytes.subarray(-1)).map(({streamId}) => streamId),
		[5],
	);
});

test('a message of exactly the limit is taken', t => {
	const bytes = encodeFrame({streamId: 1, type: 1, flags: 0}, Buffer.alloc(maxMessageLength, 1));
	const [frame] = framesOf(bytes);
	t.is(frame?.bytes.length, headerLength + maxMessageLength);
});

test('a length of 4 GiB - 1 holds no memory', t => {
	const decoder = new FrameDecoder();
	const [frame] = decodeAll([Buffer.from('ffffffff' + '00000001' + '0100', 'hex')], decoder);
	t.true(frame instanceof OversizedFrame && frame.messageLength === 0xff_ff_ff_ff);
	t.deepEqual(decodeAll([Buffer.alloc(1024 * 1024)], decoder), []);
	t.is(decoder.heldBytes, 0);
});

test('hostile bytes in hostile chunks never throw, nor hold more than one frame', t => {
	const limit = 1024;
	fc.assert(
		fc.property(fc.array(fc.uint8Array({maxLength: 3000, size: 'max'}), {maxLength: 20}), chunks => {
			const decoder = new FrameDecoder(limit);
			for (const chunk of chunks) {
				for (const frame of decoder.push(chunk)) {
					t.true(
						frame instanceof OversizedFrame ? frame.messageLength > limit : frame.message.length <= limit,
					);
				}

				t.true(decoder.heldBytes <= headerLength + limit);
			}
		}),
		{numRuns: 2000},
	);
});

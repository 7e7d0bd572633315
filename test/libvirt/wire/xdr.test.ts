import test from 'ava';
import fc from 'fast-check';
import {
	chars,
	decode,
	encode,
	i32,
	i64,
	list,
	nothing,
	opaque,
	optional,
	string,
	stringLimit,
	struct,
	u32,
	u64,
	XdrError,
	type XdrCodec,
} from '../../../src/libvirt/wire/xdr.ts';

const texts = fc.string({unit: 'grapheme', maxLength: 40}).filter(text => !text.includes('\0'));
const everything = struct({
	a: i32,
	b: u32,
	c: i64,
	d: u64,
	e: string,
	f: optional(string),
	g: list(struct({h: string, i: opaque(16)}), 20),
	j: opaque(5),
	k: chars(8),
});
const values = fc.record({
	a: fc.integer(),
	b: fc.nat(0xff_ff_ff_ff),
	c: fc.bigInt({min: -(2n ** 63n), max: 2n ** 63n - 1n}),
	d: fc.bigInt({min: 0n, max: 2n ** 64n - 1n}),
	e: texts,
	f: fc.option(texts),
	g: fc.array(fc.record({h: texts, i: buffers(16)}), {maxLength: 20}),
	j: buffers(5),
	k: fc.string({unit: fc.constantFrom('a', 'Z', '0', '~'), maxLength: 8}),
});

function buffers(length: number): fc.Arbitrary<Buffer> {
	return fc.uint8Array({minLength: length, maxLength: length}).map(bytes => Buffer.from(bytes));
}

function hex(text: string): Buffer {
	return Buffer.from(text.replaceAll(' ', ''), 'hex');
}

test('whatever is written is read back', t => {
	fc.assert(
		fc.property(values, value => {
			t.deepEqual(decode(everything, encode(everything, value)), value);
		}),
	);
	t.pass();
});

// RFC 4506, sections 4.1 to 4.19.
test('every type has the bytes of RFC 4506', t => {
	t.deepEqual(encode(i32, -2), hex('fffffffe'));
	t.deepEqual(encode(u64, 0x01_02_03_04_05_06_07_08n), hex('0102030405060708'));
	t.deepEqual(encode(i64, -1n), hex('ffffffffffffffff'));
	t.deepEqual(encode(string, 'ü€'), hex('00000005 c3bce282ac 000000'));
	t.deepEqual(encode(optional(string), null), hex('00000000'));
	t.deepEqual(encode(optional(string), ''), hex('00000001 00000000'));
	t.deepEqual(encode(list(u32, 5), [7, 8]), hex('00000002 00000007 00000008'));
	t.deepEqual(encode(opaque(5), hex('0102030405')), hex('0102030405 000000'));
	t.deepEqual(encode(chars(3), 'ab'), hex('00000061 00000062 00000000'));
	t.deepEqual(encode(nothing, undefined), hex(''));
});

test('values that have no encoding are refused', t => {
	const refused = <T>(codec: XdrCodec<T>, value: T): void => {
		t.throws(() => encode(codec, value), {instanceOf: XdrError, code: 'invalid-argument'});
	};

	refused(i32, 2 ** 31);
	refused(i32, 1.5);
	refused(u32, -1);
	refused(u32, Number.NaN);
	refused(u64, -1n);
	refused(u64, 2n ** 64n);
	refused(i64, 2n ** 63n);
	refused(string, 'a\0b');
	refused(string, 'a'.repeat(stringLimit + 1));
	refused(list(u32, 2), [1, 2, 3]);
	refused(opaque(16), Buffer.alloc(15));
});

test('lengths are checked against limit and bytes before memory is spent', t => {
	const refused = <T>(codec: XdrCodec<T>, bytes: string): void => {
		t.throws(() => decode(codec, hex(bytes)), {instanceOf: XdrError, code: 'data-loss'});
	};

	refused(string, 'ffffffff');
	refused(string, '00400001');
	refused(string, '00000008 61626364');
	refused(list(u32, 16_384), '00004000');
	refused(list(u32, 2), '00000003 00000001 00000002 00000003');
	refused(optional(u32), '00000002 00000000');
	refused(u64, '00000000');
	refused(u32, '00000000 00');
	refused(nothing, '00000000');
});

test('a text of exactly the limit passes', t => {
	const text = 'x'.repeat(stringLimit);
	t.is(decode(string, encode(string, text)), text);
});

test('hostile bytes give a value or an XdrError, nothing else', t => {
	fc.assert(
		fc.property(fc.uint8Array({maxLength: 200}), bytes => {
			try {
				decode(everything, Buffer.from(bytes));
			} catch (error) {
				t.true(error instanceof XdrError, String(error));
			}
		}),
		{numRuns: 5000},
	);
	t.pass();
});

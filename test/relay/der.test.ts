import test from 'ava';
import fc from 'fast-check';
import {
	bitString,
	explicit,
	implicit,
	isTrue,
	octetString,
	oid,
	sequence,
	setOf,
	time,
	unsigned,
	utf8String,
} from '../../src/relay/der.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

test('values are written as X.690 and RFC 5280 show them', t => {
	t.is(hex(isTrue()), '0101ff');
	t.is(hex(unsigned(Buffer.of(0))), '020100');
	t.is(hex(unsigned(Buffer.of(0, 0, 127))), '02017f');
	t.is(hex(unsigned(Buffer.of(128))), '02020080');
	t.is(hex(unsigned(Buffer.alloc(0))), '020100');
	t.is(hex(bitString(Buffer.from('0a3b5f291cd0', 'hex'), 4)), '0307040a3b5f291cd0');
	t.is(hex(oid('1.2.840.113549')), '06062a864886f70d');
	t.is(hex(oid('2.999.3')), '0603883703');
	t.is(hex(utf8String('é')), '0c02c3a9');
	t.is(hex(sequence(isTrue(), octetString(Buffer.of(1)))), '30060101ff040101');
	t.is(hex(setOf(isTrue())), '31030101ff');
	t.is(hex(explicit(3, isTrue())), 'a3030101ff');
	t.is(hex(implicit(2, Buffer.from('a'))), '820161');
});

test('a time is UTCTime through 2049 and GeneralizedTime from 2050 on', t => {
	t.is(time(new Date('2049-12-31T23:59:59.999Z')).toString('latin1'), '\u0017\r491231235959Z');
	t.is(time(new Date('2050-01-01T00:00:00Z')).toString('latin1'), '\u0018\u000f20500101000000Z');
});

test('a length takes as few bytes as it can', t => {
	for (const [length, expected] of [
		[0, '0400'],
		[127, '047f'],
		[128, '048180'],
		[255, '0481ff'],
		[256, '04820100'],
		[65_535, '0482ffff'],
		[65_536, '0483010000'],
	] as const) {
		const bytes = octetString(Buffer.alloc(length));
		t.is(hex(bytes.subarray(0, bytes.length - length)), expected);
	}
});

test('any number keeps its value, is not negative and has the shortest form', t => {
	fc.assert(
		fc.property(fc.uint8Array({maxLength: 20}), bytes => {
			const content = unsigned(bytes).subarray(2);
			t.is(BigInt(`0x0${hex(content)}`), BigInt(`0x0${hex(bytes)}`));
			t.true((content[0] ?? 0) < 0x80);
			t.true(content.length === 1 || content[0] !== 0 || (content[1] ?? 0) >= 0x80);
		}),
	);
});

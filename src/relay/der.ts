/**
 * Writes the ASN.1 types of certificates in DER (ITU-T X.690, chapters 8, 10 and 11). Knows no certificates and has no
 * parser: OpenSSL reads the result.
 */

/** X.690, 8.1.2: universal class unless the name says otherwise. */
const tags = {
	boolean: 0x01,
	integer: 0x02,
	bitString: 0x03,
	octetString: 0x04,
	oid: 0x06,
	utf8String: 0x0c,
	utcTime: 0x17,
	generalizedTime: 0x18,
	sequence: 0x30,
	set: 0x31,
	contextPrimitive: 0x80,
	contextConstructed: 0xa0,
} as const;

function value(tag: number, ...contents: readonly Uint8Array[]): Buffer {
	const content = Buffer.concat(contents);
	return Buffer.concat([Buffer.of(tag), lengthOctets(content.length), content]);
}

/** X.690, 10.1: the shortest form. */
function lengthOctets(length: number): Buffer {
	if (length < 0x80) {
		return Buffer.of(length);
	}

	const octets = base256(length);
	return Buffer.of(0x80 | octets.length, ...octets);
}

function base256(number: number): number[] {
	return number < 256 ? [number] : [...base256(Math.floor(number / 256)), number % 256];
}

export function sequence(...values: readonly Uint8Array[]): Buffer {
	return value(tags.sequence, ...values);
}

/** A set of one value. DER requires several values to be sorted. */
export function setOf(only: Uint8Array): Buffer {
	return value(tags.set, only);
}

/** `[n] EXPLICIT`. */
export function explicit(n: number, ...values: readonly Uint8Array[]): Buffer {
	return value(tags.contextConstructed | n, ...values);
}

/** `[n] IMPLICIT` of a type that is a string of bytes. */
export function implicit(n: number, bytes: Uint8Array): Buffer {
	return value(tags.contextPrimitive | n, bytes);
}

/** DER omits default values, and the default is mostly false. */
export function isTrue(): Buffer {
	return value(tags.boolean, Buffer.of(0xff));
}

/** A non-negative integer from big-endian bytes: as few bytes as possible, with first bit 0 (X.690, 8.3). */
export function unsigned(bytes: Uint8Array): Buffer {
	const start = bytes.findIndex(byte => byte !== 0);
	const shortest = start === -1 ? Buffer.of(0) : bytes.subarray(start);
	return value(tags.integer, Buffer.alloc((shortest[0] ?? 0) >= 0x80 ? 1 : 0), shortest);
}

/** @param unusedBits at the end of the last byte, all zero */
export function bitString(bytes: Uint8Array, unusedBits = 0): Buffer {
	return value(tags.bitString, Buffer.of(unusedBits), bytes);
}

export function octetString(bytes: Uint8Array): Buffer {
	return value(tags.octetString, bytes);
}

export function utf8String(text: string): Buffer {
	return value(tags.utf8String, Buffer.from(text));
}

/** @param dotted e.g. `2.5.29.19`; the first number is at most 2 */
export function oid(dotted: string): Buffer {
	const [first = 0, second = 0, ...others] = dotted.split('.').map(Number);
	return value(tags.oid, Buffer.from([first * 40 + second, ...others].flatMap(base128)));
}

/** X.690, 8.19.2: every byte but the last has its first bit set. */
function base128(number: number): number[] {
	const octets = [number % 128];
	for (let rest = Math.floor(number / 128); rest > 0; rest = Math.floor(rest / 128)) {
		octets.unshift(0x80 | (rest % 128));
	}

	return octets;
}

/**
 * Truncated to whole seconds. UTCTime until 2049, GeneralizedTime later, as certificates require (RFC 5280, 4.1.2.5).
 */
export function time(date: Date): Buffer {
	const digits = `${date.toISOString().replaceAll(/[-:T]/g, '').slice(0, 14)}Z`;
	return date.getUTCFullYear() < 2050
		? value(tags.utcTime, Buffer.from(digits.slice(2)))
		: value(tags.generalizedTime, Buffer.from(digits));
}

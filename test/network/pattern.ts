/** Bytes in which a lost, doubled or exchanged segment shows. */
export function pattern(length: number): Buffer {
	const bytes = Buffer.alloc(length);
	for (let at = 0, value = 1; at < length; at++) {
		value = (Math.imul(value, 1_664_525) + 1_013_904_223) | 0;
		bytes[at] = value >>> 24;
	}

	return bytes;
}

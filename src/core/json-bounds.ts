/**
 * Limits that a JSON text must meet before it is parsed. Each object, array, member and element costs the parser about
 * a microsecond and a hundred bytes: one megabyte of `[],[],` becomes a hundred megabytes of memory. Pure; does not
 * know what the text means.
 */

export interface JsonBounds {
	/** Commas, and openings of objects and arrays. */
	readonly parts: number;
	/** Objects and arrays inside each other. */
	readonly depth: number;
}

const [quote, backslash, comma] = [0x22, 0x5c, 0x2c];
const [openingBracket, closingBracket, openingBrace, closingBrace] = [0x5b, 0x5d, 0x7b, 0x7d];

/** Reads the bytes once and allocates nothing. Text that is not JSON may pass; the parser refuses it. */
export function isWithinBounds(json: Uint8Array, bounds: JsonBounds): boolean {
	let parts = 0;
	let depth = 0;
	for (let index = 0; index < json.length; index++) {
		const byte = json[index];
		if (byte === quote) {
			index = endOfString(json, index);
		} else if (byte === comma) {
			parts++;
		} else if (byte === openingBracket || byte === openingBrace) {
			parts++;
			depth++;
		} else if (byte === closingBracket || byte === closingBrace) {
			depth--;
		}

		if (parts > bounds.parts || depth > bounds.depth) {
			return false;
		}
	}

	return true;
}

/** @returns the position of the closing quote, or the length of the text if there is none */
function endOfString(json: Uint8Array, opening: number): number {
	for (let end = json.indexOf(quote, opening + 1); end !== -1; end = json.indexOf(quote, end + 1)) {
		let before = end - 1;
		while (json[before] === backslash) {
			before--;
		}

		if ((end - before) % 2 === 1) {
			return end;
		}
	}

	return json.length;
}

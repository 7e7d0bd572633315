/**
 * Reads untrusted JSON of any size and shape. Each object, array, member and element costs the parser about a
 * microsecond and a hundred bytes: one megabyte of `[],[],` needs a hundred megabytes of memory. Does not know what the
 * text means.
 */

/** Limits that are checked before parsing. */
export interface JsonBounds {
	/** Number of commas, and of openings of objects and arrays. */
	readonly parts: number;
	/** Depth of nested objects and arrays. */
	readonly depth: number;
}

/** The reason why a text was not parsed. Contains nothing of the text, which may be secret. */
export class JsonError extends Error {
	override readonly name = 'JsonError';
	readonly reason: 'malformed' | 'too large';

	constructor(reason: JsonError['reason']) {
		super(
			reason === 'malformed' ? 'The text is not JSON' : 'The JSON has more values, or deeper ones, than allowed',
		);
		this.reason = reason;
	}
}

/**
 * @param bounds needed if the size of the text alone does not limit the work of the parser
 * @throws JsonError
 */
export function parseJson(json: string | Buffer, bounds?: JsonBounds): unknown {
	if (bounds !== undefined && !isWithinBounds(typeof json === 'string' ? Buffer.from(json) : json, bounds)) {
		throw new JsonError('too large');
	}

	try {
		return JSON.parse(json.toString());
	} catch {
		throw new JsonError('malformed'); // The message of the parser quotes the text.
	}
}

/** For texts that may not be JSON: undefined if it is not. */
export function parseJsonOrNothing(json: string | Buffer): unknown {
	try {
		return parseJson(json);
	} catch {
		return undefined;
	}
}

/** The value at a path of member names; undefined if there is none. */
export function at(value: unknown, ...path: readonly string[]): unknown {
	let found = value;
	for (const name of path) {
		if (typeof found !== 'object' || found === null || !Object.hasOwn(found, name)) {
			return undefined;
		}

		found = (found as Readonly<Record<string, unknown>>)[name];
	}

	return found;
}

export function textAt(value: unknown, ...path: readonly string[]): string | undefined {
	const found = at(value, ...path);
	return typeof found === 'string' ? found : undefined;
}

export function numberAt(value: unknown, ...path: readonly string[]): number | undefined {
	const found = at(value, ...path);
	return typeof found === 'number' ? found : undefined;
}

/** Empty if it is not an array. */
export function listAt(value: unknown, ...path: readonly string[]): readonly unknown[] {
	const found = at(value, ...path);
	return Array.isArray(found) ? found : [];
}

/** The members that are strings. Empty if it is not an object. */
export function textsAt(value: unknown, ...path: readonly string[]): Readonly<Record<string, string>> {
	const found = at(value, ...path);
	return typeof found === 'object' && found !== null
		? Object.fromEntries(
				Object.entries(found).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
			)
		: {};
}

const [quote, backslash, comma] = [0x22, 0x5c, 0x2c];
const [openingBracket, closingBracket, openingBrace, closingBrace] = [0x5b, 0x5d, 0x7b, 0x7d];

/** Reads the bytes once and allocates nothing. Text that is not JSON may pass; the parser rejects it. */
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

/**
 * Measures how much work a TOML document is for a parser. A parser's time depends on the number of keys, tables and
 * values, and the time to build its error message depends on the number of lines. Both are counted here before the
 * parser runs. Strings and comments begin and end where a parser finds them, up to the first error; a parser stops
 * there. Source: TOML 1.1.0, "Comment", "String". Pure.
 */

export interface TomlSize {
	/**
	 * The characters `=`, `.`, `,`, `[` and `{` outside of strings and comments: an upper bound for keys, key parts,
	 * elements, tables and arrays.
	 */
	readonly parts: number;
	readonly lines: number;
}

const separators = new Set('=.,[{');

export function tomlSize(text: string): TomlSize {
	let parts = 0;
	for (let index = 0; index < text.length;) {
		const character = text[index] ?? '';
		if (character === '"' || character === "'") {
			index = endOfString(text, index, character);
		} else if (character === '#') {
			index = endOrLength(text.indexOf('\n', index), text);
		} else {
			parts += separators.has(character) ? 1 : 0;
			index++;
		}
	}

	return {parts, lines: linesIn(text)};
}

/** @returns the position after the closing quotes; for a single-line string without them, the end of the line */
function endOfString(text: string, opening: number, quote: string): number {
	const delimiter = text.startsWith(quote.repeat(3), opening) ? quote.repeat(3) : quote;
	const isMultiline = delimiter.length > 1;
	let index = opening + delimiter.length;
	while (index < text.length) {
		const character = text[index];
		if (character === quote && text.startsWith(delimiter, index)) {
			index += delimiter.length;
			// A multi-line string may end with one or two quotes of its own before the closing ones.
			for (let more = 0; isMultiline && more < 2 && text[index] === quote; more++) {
				index++;
			}

			return index;
		}

		if (character === '\n' && !isMultiline) {
			return index;
		}

		index += character === '\\' && quote === '"' ? 2 : 1;
	}

	return text.length;
}

function linesIn(text: string): number {
	let lines = 1;
	for (let end = text.indexOf('\n'); end !== -1; end = text.indexOf('\n', end + 1)) {
		lines++;
	}

	return lines;
}

function endOrLength(end: number, text: string): number {
	return end === -1 ? text.length : end;
}

/** Text for a terminal. */

/** Lines of at most `width` characters, unless a word is longer. */
export function wrapped(text: string, width: number): string[] {
	const lines: string[] = [];
	let line = '';
	for (const word of text.split(' ')) {
		if (line !== '' && line.length + 1 + word.length > width) {
			lines.push(line);
			line = word;
		} else {
			line = line === '' ? word : `${line} ${word}`;
		}
	}

	return [...lines, line];
}

/** Columns that are as wide as their longest cell; the first row is the heading. Without a line feed at the end. */
export function columns(rows: ReadonlyArray<readonly string[]>): string {
	const widths = rows[0]?.map((_, column) => Math.max(...rows.map(row => row[column]?.length ?? 0))) ?? [];
	return rows
		.map(row =>
			row
				.map((cell, column) => cell.padEnd(widths[column] ?? 0))
				.join('  ')
				.trimEnd(),
		)
		.join('\n');
}

/** Text of a guest without control sequences and characters, except line feeds and tabs. */
export function printable(text: string): string {
	return (
		text
			// ECMA-48, 5.4: control sequences, mostly colours.
			.replaceAll(/\u001B\[[0-?]*[ \-\/]*[@-~]/gv, '')
			.replaceAll('\r\n', '\n')
			.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gv, character =>
				character === '\n' || character === '\t' ? character : '',
			)
	);
}

/** "Did you mean …?" for names that a person has mistyped. */

/** ` (did you mean …?)` with the nearest name, or '' if no name is similar. */
export function suggestion(word: string, candidates: readonly string[], prefix = ''): string {
	const [nearest] = candidates
		.map(name => ({name, distance: editDistance(word, name)}))
		.filter(({name, distance}) => distance <= Math.max(2, name.length / 3))
		.toSorted((a, b) => a.distance - b.distance);
	return nearest === undefined ? '' : ` (did you mean ${prefix}${nearest.name}?)`;
}

/** Levenshtein distance: the number of characters to insert, delete or replace. */
function editDistance(from: string, to: string): number {
	let row = Array.from({length: to.length + 1}, (_, index) => index);
	for (const [i, left] of Array.from(from.slice(0, 64)).entries()) {
		const next = [i + 1];
		for (const [j, right] of Array.from(to).entries()) {
			next.push(Math.min((row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1, (row[j] ?? 0) + (left === right ? 0 : 1)));
		}

		row = next;
	}

	return row.at(-1) ?? 0;
}

/** Patterns with `*` and `?`, as in file names, known_hosts and lists of allowed images. */

/**
 * Whether the whole text matches: `*` matches any number of characters, `?` matches one (a UTF-16 unit). Backtracks at
 * most once per character, however many stars there are, so that no pattern is slow.
 */
export function matchesGlob(pattern: string, text: string): boolean {
	let [at, star, resume] = [0, -1, 0];
	for (let position = 0; position < text.length;) {
		if (pattern[at] === '*') {
			star = at++;
			resume = position;
		} else if (at < pattern.length && (pattern[at] === '?' || pattern[at] === text[position])) {
			at++;
			position++;
		} else if (star >= 0) {
			// The last star matches one more character.
			at = star + 1;
			position = ++resume;
		} else {
			return false;
		}
	}

	return /^\**$/.test(pattern.slice(at));
}

/** Patterns with stars and question marks, as file names, known_hosts and lists of allowed images have them. */

/**
 * Whether the whole text fits: `*` stands for any characters or none, `?` for one (a UTF-16 unit), everything else for
 * itself. At most one step back for each character, however many stars there are: no pattern makes it slow.
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
			// The last star takes one more.
			at = star + 1;
			position = ++resume;
		} else {
			return false;
		}
	}

	return /^\**$/.test(pattern.slice(at));
}

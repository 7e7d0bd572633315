/** Words of a POSIX shell's command line. */

/** One word for the shell, whatever it contains. @throws TypeError for what no program can be given */
export function quoted(word: string): string {
	if (word.includes('\0')) {
		throw new TypeError('An argument with a NUL byte');
	}

	return `'${word.replaceAll("'", "'\\''")}'`;
}

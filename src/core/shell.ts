/** Words of a POSIX shell's command line. */

/**
 * One word for the shell, whatever it contains. @throws TypeError for text with a NUL byte, which cannot be an argument
 * of a program
 */
export function quoted(word: string): string {
	if (word.includes('\0')) {
		throw new TypeError('An argument contains a NUL byte');
	}

	return `'${word.replaceAll("'", "'\\''")}'`;
}

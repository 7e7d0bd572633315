/** Keeps the newest lines of the log in memory, for the status API. */

/** Characters, all lines together. */
const defaultKept = 256 * 1024;

export class RecentLines {
	readonly #kept: number;
	#lines: string[] = [];
	#length = 0;

	constructor(kept = defaultKept) {
		this.#kept = kept;
	}

	add(line: string): void {
		this.#lines.push(line);
		this.#length += line.length;
		if (this.#length > 2 * this.#kept) {
			this.#cut();
		}
	}

	/** The newest lines with one of the texts, oldest first. */
	with(texts: readonly string[]): readonly string[] {
		return this.#lines.filter(line => texts.some(text => line.includes(text))).map(line => line.trimEnd());
	}

	/** Rarely, because it copies the list. */
	#cut(): void {
		let first = this.#lines.length;
		let length = 0;
		while (first > 0 && length + (this.#lines[first - 1]?.length ?? 0) <= this.#kept) {
			first--;
			length += this.#lines[first]?.length ?? 0;
		}

		this.#lines = this.#lines.slice(first);
		this.#length = length;
	}
}

/**
 * Distinguishes the first failure from repeated ones, so that a repeating failure is logged once. Knows neither logs
 * nor time.
 */

export class FailureLog {
	readonly #failing = new Set<string>();

	/**
	 * Call it at each failure.
	 * @param what distinguishes failures that may exist at the same time
	 * @returns whether it is the first failure since the last success
	 */
	failed(what = ''): boolean {
		const isNews = !this.#failing.has(what);
		this.#failing.add(what);
		return isNews;
	}

	/**
	 * Call it at each success.
	 * @param what all failures if absent
	 * @returns whether it is the first success since a failure
	 */
	recovered(what?: string): boolean {
		if (what !== undefined) {
			return this.#failing.delete(what);
		}

		const isNews = this.#failing.size > 0;
		this.#failing.clear();
		return isNews;
	}
}

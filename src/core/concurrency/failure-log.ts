/**
 * Tells what fails again and again from what fails for the first time, so that a repeating failure is logged once.
 * Knows neither logs nor time.
 */

export class FailureLog {
	readonly #failing = new Set<string>();

	/**
	 * To be called at each failure.
	 * @param what tells one failure from another, where there may be several at a time
	 * @returns whether it is news: the first failure since the last success
	 */
	failed(what = ''): boolean {
		const isNews = !this.#failing.has(what);
		this.#failing.add(what);
		return isNews;
	}

	/**
	 * To be called at each success.
	 * @param what everything if absent
	 * @returns whether it is news: the first success since a failure
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

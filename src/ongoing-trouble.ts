/** What goes wrong again and again is told once, until it is over: then it would be news. Knows neither logs nor time. */

export class OngoingTrouble {
	readonly #told = new Set<string>();

	/**
	 * To be asked each time that it goes wrong. Whether that is news.
	 * @param what tells one trouble from another, where there may be several at a time
	 */
	begins(what = ''): boolean {
		const isNews = !this.#told.has(what);
		this.#told.add(what);
		return isNews;
	}

	/**
	 * To be said each time that it goes well.
	 * @param what all of them when absent
	 * @returns whether that is news
	 */
	ends(what?: string): boolean {
		if (what !== undefined) {
			return this.#told.delete(what);
		}

		const isNews = this.#told.size > 0;
		this.#told.clear();
		return isNews;
	}
}

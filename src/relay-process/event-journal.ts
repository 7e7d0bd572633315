/** Keeps the last events of the relays, numbered, until a daemon asks for them. */
import {Change} from '../core/concurrency/change.ts';

/** Maximum number of stored events: more than occur while a daemon restarts. An event takes about 300 bytes. */
const kept = 2000;
/** Maximum number of events in one answer. */
const mostAtOnce = 200;

export interface Numbered<Event> {
	readonly number: number;
	readonly event: Event;
}

export class EventJournal<Event> {
	#events: Array<Numbered<Event>> = [];
	#last = 0;
	/** Number of the last event that a daemon has received. */
	#delivered = 0;
	readonly #added = new Change();

	add(event: Event): void {
		this.#events.push({number: ++this.#last, event});
		if (this.#events.length > 2 * kept) {
			this.#events = this.#events.slice(-kept);
		}

		this.#added.tell();
	}

	/**
	 * Waits until there is one.
	 * @param number of the last event that the caller has; 0 for those that no caller has had
	 * @throws the reason of the signal
	 */
	async after(number: number, signal: AbortSignal): Promise<ReadonlyArray<Numbered<Event>>> {
		this.#delivered = Math.max(this.#delivered, Math.min(number, this.#last));
		const from = number === 0 ? this.#delivered : number;
		for (;;) {
			const first = this.#events.findIndex(each => each.number > from);
			if (first !== -1) {
				return this.#events.slice(first, first + mostAtOnce);
			}

			await this.#added.next(signal);
		}
	}
}

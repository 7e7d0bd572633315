/** A fixed number of places, given out in the order in which they were asked for. */
import {abortable} from '../lifetime.ts';

export class Slots {
	#free: number;
	readonly #waiting = new Set<(value: undefined) => void>();

	constructor(count: number) {
		this.#free = count;
	}

	/** How many wait for a place. */
	get waiting(): number {
		return this.#waiting.size;
	}

	/** Resolves when a place is the caller's, who gives it back with `release`. Rejects with the signal's reason, then without a place. */
	async acquire(signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		if (this.#free > 0) {
			this.#free--;
			return;
		}

		const {promise, resolve} = Promise.withResolvers<undefined>();
		this.#waiting.add(resolve);
		try {
			await abortable(promise, signal);
		} catch (error) {
			// Not in the queue any more: the place was ours already when the signal aborted.
			if (!this.#waiting.delete(resolve)) {
				this.release();
			}

			throw error;
		}
	}

	release(): void {
		const [next] = this.#waiting;
		if (next === undefined) {
			this.#free++;
			return;
		}

		this.#waiting.delete(next);
		next(undefined);
	}
}

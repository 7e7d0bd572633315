/** One after the other for the same key, side by side for different ones. Knows nothing of what it orders. */
import {abortable} from '../lifetime.ts';

export class Turns {
	readonly #last = new Map<string, Promise<void>>();

	/** Waits for its turn, then works. The signal ends the wait; `work` has to look at it by itself. */
	async take<T>(key: string, work: () => Promise<T>, signal: AbortSignal): Promise<T> {
		const before = this.#last.get(key) ?? Promise.resolve();
		const {promise: done, resolve} = Promise.withResolvers<undefined>();
		// Also when this one gives up waiting, the next waits for the one before.
		const turn = before.then(async () => done);
		this.#last.set(key, turn);
		void turn.then(() => {
			if (this.#last.get(key) === turn) {
				this.#last.delete(key);
			}
		});
		try {
			await abortable(before, signal);
			return await work();
		} finally {
			resolve(undefined);
		}
	}
}

/** Limits how many run at a time. The others wait, first come first served, and may give up. */
import {abortable} from '../lifetime.ts';

export class Semaphore {
	#free: number;
	readonly #waiting = new Set<(value: undefined) => void>();

	/** @param limit how many hold it at a time */
	constructor(limit: number) {
		this.#free = limit;
	}

	/** How many wait. */
	get waiting(): number {
		return this.#waiting.size;
	}

	/**
	 * Resolves when the caller may go on. Disposing the result, once or more often, lets the next one go on.
	 * Rejects with the signal's reason; the caller then holds nothing.
	 */
	async acquire(signal: AbortSignal): Promise<Disposable> {
		signal.throwIfAborted();
		if (this.#free > 0) {
			this.#free--;
			return this.#permit();
		}

		const {promise, resolve} = Promise.withResolvers<undefined>();
		this.#waiting.add(resolve);
		try {
			await abortable(promise, signal);
			return this.#permit();
		} catch (error) {
			// No longer in the queue: the permit was handed to us in the moment in which the signal aborted.
			if (!this.#waiting.delete(resolve)) {
				this.#release();
			}

			throw error;
		}
	}

	#permit(): Disposable {
		let isHeld = true;
		return {
			[Symbol.dispose]: () => {
				if (isHeld) {
					isHeld = false;
					this.#release();
				}
			},
		};
	}

	#release(): void {
		const [next] = this.#waiting;
		if (next === undefined) {
			this.#free++;
			return;
		}

		this.#waiting.delete(next);
		next(undefined);
	}
}

/** Does something again and again: at regular times, and at once when there is a reason. */
import {abortable, Scope} from '../lifetime.ts';

/** A reason to look now: remembered until somebody has waited for it, and several at once count as one. */
export class Trigger {
	#fired = Promise.withResolvers<undefined>();

	fire(): void {
		this.#fired.resolve(undefined);
	}

	/**
	 * Resolves when it has been fired since the last time that this resolved. Rejects with the signal's reason. For one
	 * waiter at a time.
	 */
	async wait(signal: AbortSignal): Promise<void> {
		await abortable(this.#fired.promise, signal);
		this.#fired = Promise.withResolvers<undefined>();
	}
}

/**
 * Yields at once, and then each time that the interval has passed, counted from the end of the consumer's work. Ends
 * without an error when the signal aborts. Each interval is shortened by up to a fifth at random, so that nodes that
 * began together spread out.
 * @param trigger yields before the interval has passed
 */
export async function* every(intervalMs: number, signal: AbortSignal, trigger?: Trigger): AsyncGenerator<void, void> {
	const isOver = (): boolean => signal.aborted;
	while (!isOver()) {
		yield;
		if (isOver()) {
			return;
		}

		using rest = new Scope(signal).deadline(Math.round(intervalMs * (1 - Math.random() / 5)), 'the next round');
		await (trigger ?? new Trigger()).wait(rest.signal).catch(() => undefined);
	}
}

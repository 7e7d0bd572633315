/** Repeats work at intervals, and at once when a trigger fires. */
import {abortable, Scope} from '../lifetime.ts';

/** A request to run now. It is remembered until someone waits for it; several requests count as one. */
export class Trigger {
	#fired = Promise.withResolvers<undefined>();

	fire(): void {
		this.#fired.resolve(undefined);
	}

	/**
	 * Resolves at once if the trigger was fired since the last call resolved; otherwise when it is fired. Rejects with
	 * the reason of the signal. For one waiter at a time.
	 */
	async wait(signal: AbortSignal): Promise<void> {
		await abortable(this.#fired.promise, signal);
		this.#fired = Promise.withResolvers<undefined>();
	}
}

/**
 * Yields at once, then after each interval, counted from the end of the work of the consumer. Ends without an error
 * when the signal aborts. Each interval is shortened by up to 20 % at random, so that nodes that started together
 * spread out.
 * @param trigger yields before the end of the interval
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

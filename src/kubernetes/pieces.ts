/**
 * Runs work that takes milliseconds: one piece in each turn of the event loop, so that many pieces at once do not stall
 * it.
 */
import {setImmediate} from 'node:timers/promises';
import {Semaphore} from '../core/concurrency/semaphore.ts';

export class Pieces {
	readonly #one = new Semaphore(1);

	/** @param work must not take longer than one turn of the event loop may take */
	async run<T>(work: () => T, signal: AbortSignal): Promise<T> {
		using _ = await this.#one.acquire(signal);
		await setImmediate();
		return work();
	}
}

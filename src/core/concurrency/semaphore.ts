/**
 * Limits how many run at a time. The others wait and may give up: within a group first come first served, and the
 * groups take turns, so that one with many waiters does not keep another waiting for all of them.
 */
import {abortable} from '../lifetime.ts';

type Wake = (value: undefined) => void;

export class Semaphore {
	#free: number;
	/** By group, the one whose turn is next first. No group is empty. */
	readonly #waiting = new Map<string, Set<Wake>>();

	/** @param limit how many hold it at a time */
	constructor(limit: number) {
		this.#free = limit;
	}

	/** How many wait. */
	get waiting(): number {
		return this.#waiting.values().reduce((sum, {size}) => sum + size, 0);
	}

	/**
	 * Resolves when the caller may go on. Disposing the result, once or more often, lets the next one go on.
	 * Rejects with the signal's reason; the caller then holds nothing.
	 * @param group waits in turn with other groups; all in one by default
	 */
	async acquire(signal: AbortSignal, group = ''): Promise<Disposable> {
		signal.throwIfAborted();
		if (this.#free > 0) {
			this.#free--;
			return this.#permit();
		}

		const {promise, resolve} = Promise.withResolvers<undefined>();
		const waiters = this.#waiting.get(group) ?? new Set();
		this.#waiting.set(group, waiters.add(resolve));
		try {
			await abortable(promise, signal);
			return this.#permit();
		} catch (error) {
			// No longer in the queue: the permit was handed to us in the moment in which the signal aborted.
			if (!this.#leave(group, resolve)) {
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

		const [group, waiters] = next;
		const [wake] = waiters;
		// The group goes behind the others, if it has more.
		this.#waiting.delete(group);
		if (waiters.size > 1) {
			this.#waiting.set(group, waiters);
		}

		if (wake !== undefined) {
			waiters.delete(wake);
			wake(undefined);
		}
	}

	/** @returns whether it waited */
	#leave(group: string, wake: Wake): boolean {
		const waiters = this.#waiting.get(group);
		const hasWaited = waiters?.delete(wake) ?? false;
		if (waiters?.size === 0) {
			this.#waiting.delete(group);
		}

		return hasWaited;
	}
}

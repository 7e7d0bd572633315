/**
 * Limits concurrent work. Waiters may give up. Within a group, waiters are served in order; groups take turns, so that
 * a group with many waiters does not delay the others.
 */
import {abortable} from '../lifetime.ts';

type Wake = (value: undefined) => void;

export class Semaphore {
	#free: number;
	/** Waiters by group; the group with the next turn is first. No group is empty. */
	readonly #waiting = new Map<string, Set<Wake>>();

	/** @param limit maximum number of holders */
	constructor(limit: number) {
		this.#free = limit;
	}

	/** Number of waiters. */
	get waiting(): number {
		return this.#waiting.values().reduce((sum, {size}) => sum + size, 0);
	}

	/**
	 * Resolves when the caller may continue. Disposing the result admits the next waiter; disposing it again has no
	 * effect. Rejects with the reason of the signal; the caller then holds nothing.
	 * @param group takes turns with other groups; all callers share one by default
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
			// No longer in the queue: the permit was granted at the moment when the signal aborted.
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
		// The group moves to the end if it has more waiters.
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

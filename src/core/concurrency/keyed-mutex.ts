/**
 * Mutual exclusion by key: tasks of one key run one at a time, in the order in which they came; tasks of different keys
 * run side by side.
 */
import {abortable} from '../lifetime.ts';

export class KeyedMutex {
	/** Of each key that has tasks: settles, and never rejects, when the last of them has ended. */
	readonly #last = new Map<string, Promise<unknown>>();

	/** Whether a task of the key runs or waits. */
	isBusy(key: string): boolean {
		return this.#last.has(key);
	}

	/**
	 * Runs `task` when all earlier tasks of the key have settled, however they settled.
	 * @param signal ends the wait, and then the task never runs. It does not end a task that runs.
	 */
	async run<T>(key: string, task: () => Promise<T>, signal: AbortSignal): Promise<T> {
		const earlier = this.#last.get(key) ?? Promise.resolve();
		const result = earlier.then(async () => {
			signal.throwIfAborted();
			return task();
		});
		const settled = result.then(
			() => undefined,
			() => undefined,
		);
		this.#last.set(key, settled);
		void settled.then(() => {
			if (this.#last.get(key) === settled) {
				this.#last.delete(key);
			}
		});
		await abortable(earlier, signal);
		return result;
	}
}

/**
 * Mutual exclusion by key: tasks with the same key run one at a time, in the order of arrival; tasks with different
 * keys run in parallel.
 */
import {abortable} from '../lifetime.ts';

export class KeyedMutex {
	/** For each key with tasks: settles when the last of them has ended; never rejects. */
	readonly #last = new Map<string, Promise<unknown>>();

	/** Whether a task with the key runs or waits. */
	isBusy(key: string): boolean {
		return this.#last.has(key);
	}

	/**
	 * Runs `task` after all earlier tasks with the key have settled.
	 * @param signal ends the wait, and then the task never runs. It does not end a running task.
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

/** Tasks that run one at a time, in the order in which they came. */
import {abortable} from '../lifetime.ts';

export class Mailbox {
	/** Never rejects. */
	#last: Promise<unknown> = Promise.resolve();

	/**
	 * Runs `task` after everything that was posted before it has settled, however it settled.
	 * @param signal ends the wait for the turn, and the task is never run then. A task that has begun is not ended by it.
	 */
	async post<T>(task: () => Promise<T>, signal: AbortSignal): Promise<T> {
		const before = this.#last;
		const turn = before.then(async () => {
			signal.throwIfAborted();
			return task();
		});
		this.#last = turn.catch(() => undefined);
		await abortable(before, signal);
		return turn;
	}
}

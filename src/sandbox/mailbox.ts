/** Tasks that run one at a time, in the order in which they came. */
export class Mailbox {
	#last: Promise<unknown> = Promise.resolve();

	/** Runs `task` after everything that was posted before it has settled, however it settled. */
	async post<T>(task: () => Promise<T>): Promise<T> {
		const turn = this.#last.then(task, task);
		this.#last = turn.catch(() => undefined);
		return turn;
	}
}

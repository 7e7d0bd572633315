/** Shares one result between concurrent callers, and caches it until it is invalidated. */
import {abortable} from '../lifetime.ts';

/** The work runs once for all callers, so no signal of a single caller aborts it. A failure is not cached. */
export class SharedAnswer<T> {
	readonly #ask: () => Promise<T>;
	#answer: Promise<T> | undefined;

	constructor(ask: () => Promise<T>) {
		this.#ask = ask;
	}

	async get(signal: AbortSignal): Promise<T> {
		const answer = this.#answer ?? this.#begin();
		return abortable(answer, signal);
	}

	forget(): void {
		this.#answer = undefined;
	}

	#begin(): Promise<T> {
		const answer = this.#ask();
		this.#answer = answer;
		answer.catch(() => {
			if (this.#answer === answer) {
				this.forget();
			}
		});
		return answer;
	}
}

/** One question that many ask at the same time, and its answer, kept until it is forgotten. */
import {abortable} from '../lifetime.ts';

/** The question is asked once for all callers, so none of their signals ends it. A failure is not kept. */
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

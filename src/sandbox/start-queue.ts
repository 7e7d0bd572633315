/** At most so many starts at a time; the others wait their turn, first come first served, and may give up. */
import {toError} from '../errors.ts';

export class StartQueue {
	readonly #limit: number;
	readonly #waiting = new Set<() => void>();
	#running = 0;

	constructor(limit: number) {
		this.#limit = limit;
	}

	/** Starts that wait for their turn. */
	get length(): number {
		return this.#waiting.size;
	}

	/** Resolves when it is the caller's turn; disposing what it gives passes the turn on. Rejects with the signal's reason. */
	async turn(signal: AbortSignal): Promise<Disposable> {
		if (signal.aborted) {
			throw toError(signal.reason);
		}

		if (this.#running >= this.#limit) {
			const {promise, resolve, reject} = Promise.withResolvers<undefined>();
			const take = (): void => resolve(undefined);
			const onAbort = (): void => {
				if (this.#waiting.delete(take)) {
					reject(toError(signal.reason));
				}
			};
			this.#waiting.add(take);
			signal.addEventListener('abort', onAbort, {once: true});
			try {
				// Whoever takes us out of the set has counted us in.
				await promise;
			} finally {
				signal.removeEventListener('abort', onAbort);
			}
		} else {
			this.#running++;
		}

		let isPassedOn = false;
		return {
			[Symbol.dispose]: () => {
				if (!isPassedOn) {
					isPassedOn = true;
					this.#passOn();
				}
			},
		};
	}

	#passOn(): void {
		const [next] = this.#waiting;
		if (next === undefined) {
			this.#running--;
		} else {
			this.#waiting.delete(next);
			next();
		}
	}
}

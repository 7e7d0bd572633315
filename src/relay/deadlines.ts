/**
 * Timer for the deadlines of calls. The relay must answer before the shim gives up: the shim ends the pod after the
 * first health check without an answer.
 */
import type {Call, Calls} from './calls.ts';

export class Deadlines implements Disposable {
	readonly #calls: Calls;
	readonly #now: () => number;
	readonly #expired: (calls: readonly Call[]) => void;
	#timer: NodeJS.Timeout | undefined;

	/**
	 * @param now monotonic, in milliseconds
	 * @param expired called with the delayed calls whose deadline has passed
	 */
	constructor(calls: Calls, now: () => number, expired: (calls: readonly Call[]) => void) {
		this.#calls = calls;
		this.#now = now;
		this.#expired = expired;
	}

	/** Call it when further calls may be delayed. */
	watch(): void {
		clearTimeout(this.#timer);
		const next = this.#calls.nextDeadline;
		if (next === undefined) {
			return;
		}

		this.#timer = setTimeout(
			() => {
				this.#expired(this.#calls.expired(this.#now()));
				this.watch();
			},
			Math.min(Math.max(0, next - this.#now()) + 1, 0x7f_ff_ff_ff),
		);
	}

	[Symbol.dispose](): void {
		clearTimeout(this.#timer);
	}
}

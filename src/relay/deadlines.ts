/**
 * The clock of the calls that are to be answered before the shim gives up on them: the first health check without an
 * answer ends the pod.
 */
import type {Call, Calls} from './calls.ts';

export class Deadlines implements Disposable {
	readonly #calls: Calls;
	readonly #now: () => number;
	readonly #expired: (calls: readonly Call[]) => void;
	#timer: NodeJS.Timeout | undefined;

	/**
	 * @param now milliseconds that only grow
	 * @param expired is told the delayed calls whose time is up
	 */
	constructor(calls: Calls, now: () => number, expired: (calls: readonly Call[]) => void) {
		this.#calls = calls;
		this.#now = now;
		this.#expired = expired;
	}

	/** To be said when there may be more calls that are delayed. */
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

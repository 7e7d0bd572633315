/**
 * Notices that a peer has fallen silent: asks it, then suspects it, then gives it up. Knows nothing of what is asked,
 * nor how.
 *
 *   heard ──1 tick──▶ asked ──1 tick──▶ suspected ──at the limit──▶ given up
 *     ▲────────────────┴─────────────────────┘ anything heard
 */

/** Time is counted in ticks of a timer: a process that was stopped itself sees one late tick, not a silent peer. */
const ticksOfLimit = 20;
const [askAfter, suspectAfter] = [1, 2];

export interface KeepaliveOptions {
	/** Of silence, until the peer is given up. */
	readonly limitMs: number;
	readonly ask: () => void;
	/** @param heard aborts when the silence ends, or the watch does */
	readonly onSuspicion: (heard: AbortSignal) => void;
	readonly onLimit: () => void;
}

export class Keepalive {
	readonly #options: KeepaliveOptions;
	readonly #timer: NodeJS.Timeout;
	#silentTicks = 0;
	#suspicion: AbortController | undefined;

	constructor(options: KeepaliveOptions) {
		this.#options = options;
		this.#timer = setInterval(() => this.#tick(), options.limitMs / ticksOfLimit);
	}

	/** Something came. */
	heard(): void {
		// The tick that is under way does not count as one of silence.
		this.#silentTicks = -1;
		this.#suspicion?.abort();
		this.#suspicion = undefined;
	}

	stop(): void {
		clearInterval(this.#timer);
		this.heard();
	}

	#tick(): void {
		this.#silentTicks++;
		if (this.#silentTicks === askAfter) {
			this.#options.ask();
		} else if (this.#silentTicks === suspectAfter) {
			this.#suspicion = new AbortController();
			this.#options.onSuspicion(this.#suspicion.signal);
		} else if (this.#silentTicks === ticksOfLimit) {
			this.#options.onLimit();
		}
	}
}

/**
 * Detects a silent peer: pings it, then suspects it, then reports that the limit is reached. Does not know what a ping
 * is.
 *
 *   heard ──1 tick──▶ pinged ──1 tick──▶ suspected ──at the limit──▶ reported
 *     ▲─────────────────┴─────────────────────┘ anything received
 */

/**
 * Time is counted in ticks of a timer: if this process itself was stopped for a while, only one tick is late, so the
 * peer is not reported as silent.
 */
const ticksOfLimit = 20;
const [pingAfter, suspectAfter] = [1, 2];

export interface KeepaliveOptions {
	/** How long the peer may be silent. */
	readonly limitMs: number;
	readonly ping: () => void;
	/** @param heard aborts when the silence ends, or when the keepalive is stopped */
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

	/** Call this when anything was received. */
	heard(): void {
		// The current tick does not count as silence.
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
		if (this.#silentTicks === pingAfter) {
			this.#options.ping();
		} else if (this.#silentTicks === suspectAfter) {
			this.#suspicion = new AbortController();
			this.#options.onSuspicion(this.#suspicion.signal);
		} else if (this.#silentTicks === ticksOfLimit) {
			this.#options.onLimit();
		}
	}
}

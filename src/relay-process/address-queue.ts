/** Queues the addresses of a VM as the daemon sends them. Only its signal ends the queue. */
import {Change} from '../core/concurrency/change.ts';
import {toError} from '../core/errors.ts';

/**
 * Maximum number of queued addresses. A VM has one address and perhaps an outdated lease. The limit protects the memory
 * from a peer that sends addresses without end.
 */
const most = 64;

export class AddressQueue implements AsyncIterable<string> {
	readonly #signal: AbortSignal;
	readonly #known = new Set<string>();
	readonly #added = new Change();

	constructor(signal: AbortSignal) {
		this.#signal = signal;
	}

	add(address: string): void {
		if (this.#known.size < most) {
			this.#known.add(address);
			this.#added.tell();
		}
	}

	async *[Symbol.asyncIterator](): AsyncGenerator<string, never> {
		const given = new Set<string>();
		for (;;) {
			for (const address of this.#known) {
				if (!given.has(address)) {
					given.add(address);
					yield address;
				}
			}

			if (this.#signal.aborted) {
				throw toError(this.#signal.reason);
			}

			if (given.size === this.#known.size) {
				await this.#added.next(this.#signal);
			}
		}
	}
}

/** Tells everyone who waits that a value has changed. The value itself is kept by its owner. */
import {abortable} from '../lifetime.ts';

export class Change {
	#next = Promise.withResolvers<undefined>();

	tell(): void {
		this.#next.resolve(undefined);
		this.#next = Promise.withResolvers<undefined>();
	}

	/** Resolves at the next change. @throws the reason of the signal */
	async next(signal: AbortSignal): Promise<void> {
		await abortable(this.#next.promise, signal);
	}
}

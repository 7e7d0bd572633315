/**
 * Counts protocol violations of a peer on one connection. A few are tolerated: a bug of the peer should not end the
 * calls of a pod. Does not decide the consequences.
 */
import {AdaptorError} from '../core/errors.ts';

/** Frames that a peer must not send. */
export type Violation =
	| 'a response to no call'
	| 'data of no call'
	| 'a message over the limit'
	| 'a request from the server side'
	| 'a response from the client side'
	| 'a frame of a reserved type';

/** Number of tolerated violations per connection, of all kinds together. */
const forgiven = 10;

export class Violations {
	readonly #counts = new Map<Violation, number>();
	#total = 0;

	/** @returns the error that ends the connection, if there were too many */
	add(violation: Violation): AdaptorError | undefined {
		this.#counts.set(violation, (this.#counts.get(violation) ?? 0) + 1);
		this.#total++;
		return this.#total > forgiven
			? new AdaptorError({code: 'data-loss', what: `the peer broke the ttrpc protocol: it sent ${this.#text}`})
			: undefined;
	}

	/** Whether it is the first of its kind. */
	isFirst(violation: Violation): boolean {
		return this.#counts.get(violation) === 1;
	}

	get #text(): string {
		return [...this.#counts]
			.map(([violation, count]) => `${violation} ${count === 1 ? 'once' : `${count} times`}`)
			.join(', ');
	}
}

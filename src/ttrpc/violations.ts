/**
 * Counts how often a peer breaks the protocol on one connection. A few times are forgiven: a bug on the other side
 * should not cost a pod its calls. Decides nothing about what follows.
 */
import {AdaptorError} from '../core/errors.ts';

/** What one side of a ttrpc connection must not send. */
export type Violation =
	| 'a response to no call'
	| 'data of no call'
	| 'a message over the limit'
	| 'a request from the server side'
	| 'a response from the client side'
	| 'a frame of a reserved type';

/** Forgiven on one connection, of all kinds together. */
const forgiven = 10;

export class Violations {
	readonly #counts = new Map<Violation, number>();
	#total = 0;

	/** @returns the error that ends the connection, once it is one too many */
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

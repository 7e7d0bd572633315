/**
 * The progress of one start: its stage, and the candidate addresses of its VM with the result of dialling them. Says so
 * to its reporter when the start takes long.
 */
import type {AddressProgress} from './events.ts';
import {Stages} from './stages.ts';

/** More candidates than any VM has; limits the length of a report. */
const mostAddresses = 8;

export class StartProgress {
	readonly stages = new Stages();
	readonly #addresses = new Map<string, string>();

	/** The candidates with the last result of dialling each. */
	get addresses(): readonly AddressProgress[] {
		return Array.from(this.#addresses, ([address, progress]) => ({address, progress})).slice(-mostAddresses);
	}

	/** A candidate was dialled, with this result. */
	readonly dialled = (address: string, progress: string): void => {
		this.#addresses.set(address, progress);
	};

	/**
	 * Passes the candidates on. Not a generator: ending a generator waits for its next address, possibly forever.
	 */
	noting(found: AsyncGenerator<string, never>): AsyncIterable<string> {
		const next = async (): Promise<IteratorResult<string, never>> => {
			const result = await found.next();
			if (result.done !== true && !this.#addresses.has(result.value)) {
				this.#addresses.set(result.value, 'no answer yet');
			}

			return result;
		};

		return {[Symbol.asyncIterator]: () => ({next, return: async () => found.return(undefined as never)})};
	}
}

/** Calls `report` after each of the times, until it is disposed. */
export function reportAfter(timesMs: readonly number[], report: (afterMs: number) => void): Disposable {
	const timers = timesMs.map(ms => setTimeout(() => report(ms), ms));
	return {
		[Symbol.dispose]() {
			for (const timer of timers) {
				clearTimeout(timer);
			}
		},
	};
}

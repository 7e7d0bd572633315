/** Tries something until it succeeds, with growing pauses. Knows nothing of what it tries. */
import {backOff, pause} from '../lifetime.ts';

export interface Failure {
	/** Counts from 1. */
	readonly attempt: number;
	/** The pause that follows. */
	readonly retryInMs: number;
}

export interface RetryOptions {
	/** The first pause, and the longest. */
	readonly backOff: readonly [firstMs: number, longestMs: number];
	/**
	 * The least that the pause after an error lasts, in milliseconds, such as a server's Retry-After; undefined for the
	 * pause of the back-off.
	 */
	readonly leastPauseMs?: (error: unknown) => number | undefined;
	/**
	 * Hears of each failure before the pause that follows it. An error that it throws ends the retries and is what
	 * `retry` throws.
	 */
	readonly onFailure?: (error: unknown, failure: Failure) => void;
}

/**
 * @param work one attempt, which minds the signal by itself; attempts count from 1
 * @returns what the first attempt gives that succeeds
 * @throws the signal's reason when it aborts during a pause, and what an attempt threw when the signal had aborted by
 * then
 */
export async function retry<T>(
	work: (attempt: number) => Promise<T>,
	{backOff: [firstMs, longestMs], leastPauseMs, onFailure}: RetryOptions,
	signal: AbortSignal,
): Promise<T> {
	const pauses = backOff(firstMs, longestMs);
	for (let attempt = 1; ; attempt++) {
		signal.throwIfAborted();
		try {
			return await work(attempt);
		} catch (error) {
			if (signal.aborted) {
				throw error;
			}

			const retryInMs = Math.max(pauses.next().value, leastPauseMs?.(error) ?? 0);
			onFailure?.(error, {attempt, retryInMs});
			await pause(retryInMs, signal);
		}
	}
}

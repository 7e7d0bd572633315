/** Retries work until it succeeds, with growing pauses. */
import {backOff, pause} from '../lifetime.ts';

export interface Failure {
	/** Counts from 1. */
	readonly attempt: number;
	/** The next pause. */
	readonly retryInMs: number;
}

export interface RetryOptions {
	/** The first pause, and the longest. */
	readonly backOff: readonly [firstMs: number, longestMs: number];
	/**
	 * Minimum pause after an error in milliseconds, for example the Retry-After of a server; undefined for the pause of
	 * the back-off.
	 */
	readonly leastPauseMs?: (error: unknown) => number | undefined;
	/** Called at each failure, before the pause. If it throws, retrying ends with that error. */
	readonly onFailure?: (error: unknown, failure: Failure) => void;
}

/**
 * @param work one attempt, which must observe the signal itself; attempts count from 1
 * @returns the result of the first successful attempt
 * @throws the reason of the signal if it aborts during a pause; the error of an attempt if the signal had aborted by
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

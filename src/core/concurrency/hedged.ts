/**
 * Makes the same attempt again while the one before has not come to an end, and takes the first end of any. For ways
 * that may be dead for a while: what was sent into the dead one is sent again later and later (RFC 6298, 5.5), so that
 * an old attempt notices the way's return seconds after a new one would. Knows nothing of what is attempted.
 */
import {toError} from '../errors.ts';
import {Scope} from '../lifetime.ts';

export interface Hedge<T> {
	/** After this time without an end the next attempt begins beside those under way. */
	readonly everyMs: number;
	/** Attempts in all. */
	readonly atMost: number;
	/** Ends what a second attempt has brought that came too late. */
	readonly discard: (late: T) => void;
}

/** @param attempt must end when its signal aborts */
export async function hedged<T>(
	attempt: (signal: AbortSignal) => Promise<T>,
	{everyMs, atMost, discard}: Hedge<T>,
	signal: AbortSignal,
): Promise<T> {
	signal.throwIfAborted();
	using scope = new Scope(signal);
	const first = Promise.withResolvers<T>();
	let settled = false;
	let begun = 0;
	const begin = async (): Promise<void> => {
		if (++begun === atMost) {
			clearInterval(timer);
		}

		try {
			const result = await attempt(scope.signal);
			if (settled) {
				discard(result);
			}

			first.resolve(result);
		} catch (error) {
			first.reject(toError(error));
		} finally {
			settled = true;
		}
	};

	const timer = setInterval(() => void begin(), everyMs);
	void begin();
	try {
		return await first.promise;
	} finally {
		clearInterval(timer);
		scope.abort(new Error('Another attempt came to its end first'));
	}
}

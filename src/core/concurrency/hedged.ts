/**
 * Starts the same attempt again if the previous one takes too long, without ending it, and uses the first result. For
 * connections that may be dead for some time: TCP repeats what it sent into a dead connection at growing intervals (RFC
 * 6298, 5.5), so a new attempt notices seconds earlier that the connection works again. Does not know what is
 * attempted.
 */
import {toError} from '../errors.ts';
import {Scope} from '../lifetime.ts';

export interface Hedge<T> {
	/** After this time without a result, the next attempt starts in addition. */
	readonly everyMs: number;
	/** Maximum number of attempts. */
	readonly atMost: number;
	/** Disposes the result of another attempt that came too late. */
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
		scope.abort(new Error('Another attempt ended first'));
	}
}

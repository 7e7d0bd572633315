/** Lifetimes: scopes with a deadline, abortable waits, and pauses. */
import {setTimeout as delay} from 'node:timers/promises';
import {AdaptorError, toError} from './errors.ts';

/** For work that must complete even if nobody waits for it. */
export const neverAborts: AbortSignal = new AbortController().signal;

/**
 * An abort signal that is linked to parents and a deadline by hand; disposing removes the links. `AbortSignal.any` with
 * a long-lived signal keeps every derived signal alive (40 MB per 40,000 calls, measured with Node 24); this does not.
 */
export class Scope implements Disposable {
	readonly #controller = new AbortController();
	readonly #unlink: Array<() => void> = [];

	/** @param parents signals whose abort ends this scope too, with their reason */
	constructor(...parents: readonly AbortSignal[]) {
		for (const parent of parents) {
			if (parent.aborted) {
				this.abort(parent.reason);
				return;
			}

			const onAbort = (): void => this.abort(parent.reason);
			parent.addEventListener('abort', onAbort, {once: true});
			this.#unlink.push(() => parent.removeEventListener('abort', onAbort));
		}
	}

	get signal(): AbortSignal {
		return this.#controller.signal;
	}

	/**
	 * Ends the scope after `timeoutMs`. Chainable.
	 * @param awaited the name of the awaited thing, for a `DeadlineError`; or the error to use
	 * @param setting name of the setting that is this time limit
	 */
	deadline(timeoutMs: number, awaited: string | Error, setting?: string): this {
		if (this.signal.aborted) {
			return this;
		}

		const timer = setTimeout(
			() => {
				this.abort(
					typeof awaited === 'string'
						? new DeadlineError(
								awaited,
								setting === undefined ? timeoutMs : `${durationText(timeoutMs)} (${setting})`,
							)
						: awaited,
				);
			},
			Math.min(timeoutMs, 0x7f_ff_ff_ff),
		);
		this.#unlink.push(() => clearTimeout(timer));
		return this;
	}

	abort(reason: unknown): void {
		this.#release();
		this.#controller.abort(reason);
	}

	[Symbol.dispose](): void {
		this.#release();
	}

	#release(): void {
		for (const unlink of this.#unlink.splice(0)) {
			unlink();
		}
	}
}

export class DeadlineError extends AdaptorError {
	override readonly name = 'DeadlineError';
	/** `5m (PROXY_TIMEOUT)` */
	readonly limit: string;

	/** @param limit milliseconds, or a text that names the setting as well */
	constructor(awaited: string, limit: number | string) {
		const text = typeof limit === 'string' ? limit : `${limit} ms`;
		super({code: 'deadline-exceeded', what: `Timed out after ${text} waiting for ${awaited}`});
		this.limit = text;
	}
}

/** `5m`, `210 s` or `1500 ms`. */
export function durationText(ms: number): string {
	return ms % 60_000 === 0 ? `${ms / 60_000}m` : ms % 1000 === 0 ? `${ms / 1000} s` : `${ms} ms`;
}

/**
 * Settles with `promise`, or rejects with the reason of the signal if that comes first. This does not stop the work
 * behind the promise. Its late rejection is ignored.
 */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
	if (signal.aborted) {
		promise.catch(() => undefined);
		throw toError(signal.reason);
	}

	const {promise: aborted, reject} = Promise.withResolvers<never>();
	const onAbort = (): void => reject(toError(signal.reason));
	signal.addEventListener('abort', onAbort, {once: true});
	try {
		return await Promise.race([promise, aborted]);
	} finally {
		signal.removeEventListener('abort', onAbort);
	}
}

/** Waits; rejects with the reason of the signal as soon as it aborts. */
export async function pause(delayMs: number, signal: AbortSignal): Promise<void> {
	try {
		await delay(delayMs, undefined, {signal});
	} catch (error) {
		throw toError(signal.aborted ? signal.reason : error);
	}
}

/** Delays that double from `firstMs` up to `maxMs`, each shortened by up to 20 % at random so that peers spread out. */
export function* backOff(firstMs: number, maxMs: number): Generator<number, never> {
	for (let delayMs = firstMs; ; delayMs = Math.min(maxMs, delayMs * 2)) {
		yield Math.round(delayMs * (1 - Math.random() / 5));
	}
}

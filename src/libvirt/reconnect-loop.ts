/**
 * Repeats an attempt until it succeeds or its owner ends: with back-off, and with a long pause after a refusal. Does
 * not know what is attempted.
 */
import type {AdaptorError} from '../core/errors.ts';
import {backOff, pause, Scope} from '../core/lifetime.ts';
import {rootReason} from './connector.ts';
import {isRefusal} from './wire/errors.ts';

/**
 * The long pause after a refusal (wrong key, missing permission), because sshd counts failed attempts. A waiting caller
 * ends it.
 */
const refusedPauseMs = 30_000;

export interface ReconnectLoopOptions {
	readonly attempt: () => Promise<void>;
	/** Called after each failure. `number` counts failures since the last success, from 1. */
	readonly onFailure: (reason: AdaptorError, number: number, retryInMs: number) => void;
	/** Whether a caller waits for a connection. */
	readonly isWaitedFor: () => boolean;
	/** The first and the longest pause. */
	readonly pauseMs: {readonly first: number; readonly longest: number};
	readonly life: AbortSignal;
}

export class ReconnectLoop {
	readonly #options: ReconnectLoopOptions;
	#pauses: Iterator<number, never>;
	#running: Promise<void> = Promise.resolve();
	/** Ends the long pause after a refusal. */
	#wake: (() => void) | undefined;

	constructor(options: ReconnectLoopOptions) {
		this.#options = options;
		this.#pauses = this.#newPauses();
	}

	/** Resolves when no attempt is in progress; never rejects. */
	get ended(): Promise<void> {
		return this.#running;
	}

	/** Must not be called while attempts are in progress. */
	begin(): void {
		this.#running = this.#run(0);
	}

	/**
	 * Starts again after the result of a successful attempt was lost.
	 * @param wasStable whether the result lasted long enough to count as a success; if not, the pauses continue to grow
	 */
	beginAgain(wasStable: boolean): void {
		if (wasStable) {
			this.#pauses = this.#newPauses();
		}

		this.#running = this.#run(wasStable ? 0 : this.#pauses.next().value);
	}

	/** Call this when a caller starts to wait. */
	wake(): void {
		this.#wake?.();
	}

	async #run(firstPauseMs: number): Promise<void> {
		const {attempt, onFailure, life} = this.#options;
		let pauseMs = firstPauseMs;
		let refused = false;
		for (let number = 1; ; number++) {
			try {
				await this.#pause(pauseMs, refused);
				await attempt();
				return;
			} catch (error) {
				if (life.aborted) {
					return;
				}

				const reason = rootReason(error);
				pauseMs = this.#pauses.next().value;
				refused = isRefusal(reason);
				onFailure(reason, number, refused ? refusedPauseMs : pauseMs);
			}
		}
	}

	async #pause(pauseMs: number, refused: boolean): Promise<void> {
		const {isWaitedFor, life} = this.#options;
		await pause(pauseMs, life);
		if (!refused || isWaitedFor()) {
			return;
		}

		using scope = new Scope(life);
		this.#wake = () => scope.abort(new Error('A caller waits'));
		await pause(refusedPauseMs, scope.signal).catch(() => undefined);
		this.#wake = undefined;
		life.throwIfAborted();
	}

	#newPauses(): Iterator<number, never> {
		return backOff(this.#options.pauseMs.first, this.#options.pauseMs.longest);
	}
}

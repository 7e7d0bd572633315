/**
 * The same attempt again and again until it succeeds or its owner ends: with back-off, and with long pauses after a
 * refusal. Knows nothing of what is attempted.
 */
import type {AdaptorError} from '../core/errors.ts';
import {backOff, pause, Scope} from '../core/lifetime.ts';
import {rootReason} from './connector.ts';
import {isRefusal} from './wire/errors.ts';

/**
 * After a refusal (a key, a permission) only somebody who waits makes us try again sooner than this: sshd counts failed
 * attempts.
 */
const refusedPauseMs = 30_000;

export interface ReconnectLoopOptions {
	readonly attempt: () => Promise<void>;
	/** Called after each failure. `number` counts from 1 since the last success. */
	readonly onFailure: (reason: AdaptorError, number: number, retryInMs: number) => void;
	/** Whether somebody waits for the success. */
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

	/** Resolves when nothing is attempted; never rejects. */
	get ended(): Promise<void> {
		return this.#running;
	}

	/** Not while attempts are under way. */
	begin(): void {
		this.#running = this.#run(0);
	}

	/**
	 * What an attempt had brought is lost.
	 * @param wasStable whether it was worth the name of success: if not, pauses go on growing
	 */
	beginAgain(wasStable: boolean): void {
		if (wasStable) {
			this.#pauses = this.#newPauses();
		}

		this.#running = this.#run(wasStable ? 0 : this.#pauses.next().value);
	}

	/** Somebody waits. */
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
		this.#wake = () => scope.abort(new Error('Somebody waits'));
		await pause(refusedPauseMs, scope.signal).catch(() => undefined);
		this.#wake = undefined;
		life.throwIfAborted();
	}

	#newPauses(): Iterator<number, never> {
		return backOff(this.#options.pauseMs.first, this.#options.pauseMs.longest);
	}
}

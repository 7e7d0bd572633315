/**
 * A connection to the VM on which a health check waits and nothing arrives: is the VM slow, or do the packets vanish? A
 * second connection that is asked the same tells. Who is slow is slow on both; if the second one is answered and the
 * first stays silent, the first is dead. That the second is proven by TLS would not do: the forwarder may be well while
 * the agent behind it needs its time, and then nothing is to be lost.
 *
 *   quiet ── asked ──▶ waiting ── nothing heard for doubtMs ──▶ doubted ── only the second was answered ──▶ dead
 *     ▲── answered ─────┘  ▲─────────────── anything heard ───────┘
 *
 * Without it a connection that was dead for some seconds needs as long again to recover, for TCP doubles its pauses,
 * and one whose state a firewall has lost never does. Knows no calls and no frames.
 */
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import {AdaptorError, codeOf} from '../core/errors.ts';
import {abortable, backOff, pause, Scope} from '../core/lifetime.ts';
import type {Observer} from '../core/observer.ts';
import type {ConnectionEvent} from './events.ts';

export interface LivenessTimings {
	/**
	 * Silence after which a connection is doubted: long for a health check, and short against the time that the shim
	 * gives it.
	 */
	readonly doubtMs: number;
	/** How long the second connection is listened to before another is made. */
	readonly answerMs: number;
	/**
	 * So long the first connection may still speak when the second was answered: a VM that wakes up answers both at a
	 * time.
	 */
	readonly graceMs: number;
}

export const defaultLivenessTimings: LivenessTimings = {doubtMs: 3000, answerMs: 15_000, graceMs: 500};

export interface LivenessProbeOptions {
	/** Another connection to the VM, the caller's. Tries until it has one: rejects only when the signal aborts. */
	readonly connectVm: (signal: AbortSignal) => Promise<TLSSocket>;
	readonly observer: Observer<Extract<ConnectionEvent, {readonly kind: 'vm-slow'}>>;
	/** Milliseconds that only grow. */
	readonly now: () => number;
	readonly timings: LivenessTimings;
	/** Between one second connection and the next. */
	readonly pauseMs: readonly [first: number, longest: number];
	/** The request of a health check that has no answer yet. */
	readonly healthCheck: () => Buffer | undefined;
	/** Whether the silence means nothing at present, for it may be our own doing. */
	readonly isExcused: () => boolean;
	/** @param attempt resolves when there is no second connection any more */
	readonly doubted: (attempt: Promise<void>) => void;
	/** Once, and nothing after it. */
	readonly dead: (reason: Error) => void;
}

/** Of one connection. Disposing ends it at once. */
export class LivenessProbe implements Disposable {
	readonly #options: LivenessProbeOptions;
	/** The health check that waits, or the last one that did, for the second connection. */
	#check: Buffer = Buffer.alloc(0);
	#askedAt = 0;
	#heardAt = 0;
	#timer: NodeJS.Timeout | undefined;
	#doubt: AbortController | undefined;
	#isOver = false;

	constructor(options: LivenessProbeOptions) {
		this.#options = options;
	}

	get isDoubted(): boolean {
		return this.#doubt !== undefined;
	}

	/** Something was sent: perhaps a health check. */
	sent(): void {
		const check = this.#options.healthCheck();
		if (check === undefined) {
			return;
		}

		if (this.#askedAt <= this.#heardAt) {
			this.#check = check;
			this.#askedAt = this.#options.now();
		}

		if (this.#timer === undefined && this.#doubt === undefined) {
			this.#lookIn(this.#options.timings.doubtMs);
		}
	}

	/** Something came. */
	heard(): void {
		this.#heardAt = this.#options.now();
		if (this.#doubt !== undefined) {
			this.#doubt.abort(new Error('the connection was heard again'));
			this.#doubt = undefined;
			this.#options.observer.notify({kind: 'vm-slow', durationMs: Math.round(this.#heardAt - this.#askedAt)});
			this.#lookIn(this.#options.timings.doubtMs);
		}
	}

	[Symbol.dispose](): void {
		this.#isOver = true;
		clearTimeout(this.#timer);
		this.#doubt?.abort(new Error('the connection is not wanted any more'));
		this.#doubt = undefined;
	}

	#lookIn(delayMs: number): void {
		this.#timer = this.#isOver ? undefined : setTimeout(() => this.#look(), delayMs);
	}

	#look(): void {
		const {
			now,
			timings: {doubtMs},
			healthCheck,
			isExcused,
			doubted,
		} = this.#options;
		this.#timer = undefined;
		const leftMs = Math.max(this.#askedAt, this.#heardAt) + doubtMs - now();
		if (this.#askedAt <= this.#heardAt && healthCheck() === undefined) {
			return;
		}

		if (leftMs > 0 || isExcused()) {
			this.#lookIn(leftMs > 0 ? leftMs + 1 : doubtMs);
			return;
		}

		this.#doubt = new AbortController();
		doubted(this.#decide(this.#doubt.signal));
	}

	/** Never rejects. */
	async #decide(signal: AbortSignal): Promise<void> {
		const {
			pauseMs,
			timings: {graceMs},
			isExcused,
			dead,
			now,
		} = this.#options;
		try {
			for (const delayMs of backOff(...pauseMs)) {
				if (await this.#isOtherAnswered(signal)) {
					await pause(graceMs, signal);
					// What arrived while we were busy is heard first: timers come before it.
					await turn();
					signal.throwIfAborted();
					if (!isExcused()) {
						const silentMs = Math.round(now() - Math.max(this.#askedAt, this.#heardAt));
						dead(
							new AdaptorError({
								code: 'unavailable',
								what: `nothing arrived on it for ${silentMs} ms, while a new connection was answered`,
							}),
						);
						return;
					}
				}

				await pause(delayMs, signal);
			}
		} catch (error) {
			if (!signal.aborted) {
				throw error;
			}
		}
	}

	/**
	 * Whether the VM says anything on a second connection: no ttrpc server speaks first. That connection is closed
	 * then.
	 */
	async #isOtherAnswered(signal: AbortSignal): Promise<boolean> {
		const {
			connectVm,
			timings: {answerMs},
		} = this.#options;
		const socket = await connectVm(signal);
		const {promise: closed, resolve: onClose} = Promise.withResolvers<undefined>();
		const {promise: answered, resolve} = Promise.withResolvers<boolean>();
		if (socket.closed) {
			return false;
		}

		socket
			.once('close', onClose)
			.once('close', () => resolve(false))
			.once('end', () => resolve(false))
			.once('data', () => resolve(true));
		using scope = new Scope(signal).deadline(answerMs, 'the VM to answer on a second connection');
		try {
			socket.write(this.#check);
			return await abortable(answered, scope.signal);
		} catch (error) {
			if (codeOf(error) === 'deadline-exceeded') {
				return false;
			}

			throw error;
		} finally {
			socket.destroy();
			await closed;
		}
	}
}

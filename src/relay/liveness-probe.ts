/**
 * If a health check waits and nothing arrives, either the VM is slow or packets are lost. To decide, the probe sends
 * the same health check on a second connection. A slow VM is slow on both. If only the second one is answered, packets
 * of the first one are lost, so it has to be replaced. TCP may still deliver the data of the first one later. A
 * successful TLS handshake on the second connection proves nothing: the forwarder may answer although the agent behind
 * it is slow. In that case no call may be failed.
 *
 *   quiet ── asked ──▶ waiting ── nothing heard for doubtMs ──▶ doubted ── only the second was answered ──▶ silent
 *     ▲── answered ─────┘  ▲─────────────── anything heard ───────┘
 *
 * Without the probe, a connection that was interrupted for some seconds takes as long again to recover, because TCP
 * doubles its retransmission pauses. If a firewall has lost the state of the connection, it never recovers. Knows no
 * calls and no frames.
 */
import {setImmediate as turn} from 'node:timers/promises';
import type {Duplex} from 'node:stream';
import {AdaptorError, codeOf} from '../core/errors.ts';
import {abortable, backOff, pause, Scope} from '../core/lifetime.ts';
import type {Observer} from '../core/observer.ts';
import type {ConnectionEvent} from './events.ts';
import type {LivenessTimings} from './redial-policy.ts';

export interface LivenessProbeOptions {
	/** Opens another connection, owned by the caller. Retries: only rejects when the signal aborts. */
	readonly connectVm: (signal: AbortSignal) => Promise<Duplex>;
	readonly observer: Observer<Extract<ConnectionEvent, {readonly kind: 'vm-slow'}>>;
	/** Monotonic, in milliseconds. */
	readonly now: () => number;
	readonly timings: LivenessTimings;
	/** Pauses between second connections. */
	readonly pauseMs: readonly [first: number, longest: number];
	/** The request of an unanswered health check. */
	readonly healthCheck: () => Buffer | undefined;
	/** Whether this side may have caused the silence; in that case, the silence proves nothing. */
	readonly isExcused: () => boolean;
	/** @param attempt resolves when the second connection is closed */
	readonly doubted: (attempt: Promise<void>) => void;
	/** Called at most once, and last. */
	readonly silent: (reason: Error) => void;
}

/** Probes one connection. Disposing ends it at once. */
export class LivenessProbe implements Disposable {
	readonly #options: LivenessProbeOptions;
	/** The current or last health check, for the second connection. */
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

	/** Call it when something was sent, possibly a health check. */
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

	/** Call it when something was received. */
	heard(): void {
		this.#heardAt = this.#options.now();
		if (this.#doubt !== undefined) {
			this.#doubt.abort(new Error('the connection is alive'));
			this.#doubt = undefined;
			this.#options.observer.notify({kind: 'vm-slow', durationMs: Math.round(this.#heardAt - this.#askedAt)});
			this.#lookIn(this.#options.timings.doubtMs);
		}
	}

	[Symbol.dispose](): void {
		this.#isOver = true;
		clearTimeout(this.#timer);
		this.#doubt?.abort(new Error('the connection is no longer needed'));
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
			silent,
			now,
		} = this.#options;
		try {
			for (const delayMs of backOff(...pauseMs)) {
				if (await this.#isOtherAnswered(signal)) {
					await pause(graceMs, signal);
					// First process the data that arrived while the event loop was busy, because timers run before I/O.
					await turn();
					signal.throwIfAborted();
					if (!isExcused()) {
						const silentMs = Math.round(now() - Math.max(this.#askedAt, this.#heardAt));
						silent(
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
	 * Whether the VM answers on a second connection, which is closed afterwards. A ttrpc server never sends first, so
	 * any data is an answer.
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

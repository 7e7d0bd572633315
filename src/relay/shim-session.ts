/**
 * One shim connection, which lives until the shim closes it, and one connection to the VM at a time, which is replaced
 * when it is lost or silent.
 *
 *   dialling ── connected ──▶ joined          held frames are sent, then frames pass unchanged
 *   joined ── lost ──▶ dialling               open calls fail, replayable calls are kept (calls.ts)
 *   joined ── silent ──▶ dialling             all calls are kept: late answers count (retired-legs.ts)
 *   dialling, joined ── fail() ──▶ failed     every call is answered with UNAVAILABLE at once
 *   any ── the shim leaves, disposed ──▶ over
 *
 * Frames pass unchanged and as a whole: an incomplete frame is never forwarded. A frame over the protocol limit is not
 * forwarded; the relay answers it as its receiver would. A frame that violates the protocol is dropped; too many of
 * them end their connection. Knows no addresses and no certificates.
 */
import type {Socket} from 'node:net';
import type {Duplex} from 'node:stream';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {AdaptorError, toError, type ErrorWhere} from '../core/errors.ts';
import {backOff, pause} from '../core/lifetime.ts';
import type {Observer} from '../core/observer.ts';
import {Frame, frameType, type OversizedFrame} from '../ttrpc/frame.ts';
import {peekStatus} from '../ttrpc/message.ts';
import {statusCode, statusName} from '../ttrpc/status.ts';
import {Violations, type Violation} from '../ttrpc/violations.ts';
import {Calls, defaultCallLimits, type Call, type CallLimits, type ConnectionCalls, type Standing} from './calls.ts';
import {Deadlines} from './deadlines.ts';
import type {ConnectionEvent} from './events.ts';
import {reasons} from './reasons.ts';
import {RetiredLegs} from './retired-legs.ts';
import {ShimLeg} from './shim-leg.ts';
import {LivenessProbe} from './liveness-probe.ts';
import {VmLeg} from './vm-leg.ts';
import {lastingMs, type LivenessTimings} from './redial-policy.ts';

export interface ShimSessionOptions {
	/**
	 * Opens a verified connection to the VM, owned by this session. Retries: only rejects when the signal aborts.
	 */
	readonly connectVm: (signal: AbortSignal) => Promise<Duplex>;
	/** The VM, for the operator. */
	readonly where: ErrorWhere;
	readonly observer: Observer<ConnectionEvent>;
	/** Monotonic, in milliseconds. */
	readonly now: () => number;
	readonly limits?: CallLimits;
	/** The first and the longest pause before a redial after a short-lived connection. */
	readonly redialPauseMs: readonly [first: number, longest: number];
	readonly liveness: LivenessTimings;
}

interface Loss {
	readonly reason: Error;
	readonly at: number;
	/** Number of consecutive short-lived connections, including this one. */
	readonly attempt: number;
}

type State =
	/** `loss` is absent for the first connection. */
	| {readonly name: 'dialling'; readonly abort: AbortController; readonly loss: Loss | undefined}
	| {readonly name: 'joined'; readonly vm: VmLeg; readonly liveness: LivenessProbe; readonly since: number}
	| {readonly name: 'failed'; readonly reason: Error}
	| {readonly name: 'over'};

/** Above this backlog a health check may still be queued, so silence proves nothing. */
const maxUnacknowledgedBytes = 256 * 1024;

/** Disposing ends everything at once. */
export class ShimSession implements AsyncDisposable {
	readonly #shim: ShimLeg;
	readonly #options: ShimSessionOptions;
	readonly #startedAt: number;
	readonly #calls: Calls;
	readonly #deadlines: Deadlines;
	readonly #retired: RetiredLegs;
	readonly #ended = Promise.withResolvers<undefined>();
	/** All connections to the VM that are not closed yet. */
	readonly #legs = new Set<Promise<unknown>>();
	readonly #shimViolations = new Violations();
	/** Kinds of protocol violations that were already reported. */
	readonly #violations = new FailureLog();
	#isDisconnected = false;
	/** Number of consecutive short-lived connections to the VM. */
	#shortLived = 0;
	#state: State = {name: 'over'};
	#pauses: Generator<number, never>;

	/** @param shim paused, half-open allowed; this session owns it from now on */
	constructor(shim: Socket, options: ShimSessionOptions) {
		this.#options = options;
		this.#startedAt = options.now();
		this.#pauses = this.#newPauses();
		this.#calls = new Calls(options.observer, options.limits ?? defaultCallLimits);
		this.#deadlines = new Deadlines(this.#calls, options.now, expired => {
			this.#answerAll(expired, this.#text(this.#lateness));
			this.#retired.closeIdle();
		});
		this.#retired = new RetiredLegs({
			lateMs: options.liveness.lateMs,
			ended: (calls, reason) => this.#onRetiredLost(calls, reason),
		});
		this.#shim = new ShimLeg(shim, {
			frames: frames => this.#onShimFrames(frames),
			drained: () => this.#balance(),
			ended: () => this.#onShimEnd(),
			closed: () => this.#onShimClose(),
		});
		this.#dial(undefined, 0);
	}

	/** Resolves when all connections, to the shim and to the VM, are closed. */
	get ended(): Promise<unknown> {
		return this.#ended.promise;
	}

	/**
	 * The VM is gone: all current and future calls are answered with UNAVAILABLE and the first reason given.
	 */
	fail(reason: Error): void {
		if (this.#state.name === 'dialling' || this.#state.name === 'joined') {
			this.#notify({kind: 'vm-gone', error: reason, count: this.#calls.size});
			this.#enter({name: 'failed', reason});
			this.#answerAll(this.#calls.all(), this.#text(reasons.gone(reason)));
			if (this.#shim.hasEnded) {
				this.#finish();
			} else {
				this.#balance();
			}
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#enter({name: 'over'});
		this.#shim.destroy();
		await this.ended;
	}

	/** The only place that changes the state. Releases the resources of the previous state. */
	#enter(state: State): void {
		const before = this.#state;
		this.#state = state;
		if (before.name === 'dialling' && state.name !== 'joined') {
			before.abort.abort(new Error('the connection is no longer needed'));
		} else if (before.name === 'joined') {
			before.liveness[Symbol.dispose]();
			if (this.#retired.callsOf(before.vm) === undefined) {
				before.vm.destroy();
			}
		}

		if (state.name === 'failed' || state.name === 'over') {
			this.#retired[Symbol.dispose]();
			this.#deadlines[Symbol.dispose]();
		}
	}

	#onShimFrames(frames: Iterable<Frame | OversizedFrame>): void {
		const toVm: Buffer[] = [];
		for (const frame of frames) {
			const violation = shimViolation(frame);
			if (violation !== undefined) {
				if (this.#isShimUnbearable(violation)) {
					return;
				}
			} else if (this.#isForVm(frame)) {
				toVm.push(frame.bytes);
			}
		}

		if (this.#state.name === 'joined') {
			this.#state.vm.send(toVm);
			this.#state.liveness.sent();
		}

		if (this.#state.name === 'dialling' || (this.#state.name === 'joined' && this.#state.liveness.isDoubted)) {
			this.#watchDeadlines();
		}

		this.#balance();
	}

	/** Whether the caller must send the frame now. If not, this method has held, answered or dropped the frame. */
	#isForVm(frame: Frame | OversizedFrame): frame is Frame {
		const {streamId, type} = frame;
		const isJoined = this.#state.name === 'joined';
		if (!(frame instanceof Frame)) {
			this.#shim.respond(streamId, statusCode.resourceExhausted, reasons.tooLarge('request', frame));
			return false;
		}

		if (type === frameType.request) {
			return this.#isRequestForVm(frame, isJoined);
		}

		const admission = this.#calls.data(frame, isJoined);
		if (admission === 'full') {
			this.#answer(streamId, statusCode.unavailable, this.#text(reasons.tooMuchHeld));
		} else if (admission === 'retired') {
			this.#answer(streamId, statusCode.unavailable, this.#text(reasons.torn));
		}

		return isJoined && admission === 'taken';
	}

	/** Whether the violation ends the connection of the shim. */
	#isShimUnbearable(violation: Violation): boolean {
		const reason = this.#shimViolations.add(violation);
		this.#reportViolation('shim', violation);
		if (reason === undefined) {
			return false;
		}

		this.#notify({kind: 'shim-cut-off', error: reason});
		this.#enter({name: 'over'});
		this.#shim.destroy();
		return true;
	}

	/** Reports each kind once, so that a peer cannot flood the observer. */
	#reportViolation(by: 'shim' | 'VM', violation: Violation): void {
		if (this.#violations.failed(`${by}: ${violation}`)) {
			this.#notify({kind: 'protocol-violated', by, violation});
		}
	}

	#notify(event: ConnectionEvent): void {
		this.#options.observer.notify(event);
	}

	#isRequestForVm(frame: Frame, isJoined: boolean): boolean {
		const {streamId} = frame;
		if (this.#state.name === 'failed') {
			this.#shim.respond(streamId, statusCode.unavailable, this.#text(reasons.gone(this.#state.reason)));
			return false;
		}

		const admission = this.#calls.request(frame, isJoined, this.#options.now());
		if (admission === 'busy') {
			this.#shim.respond(streamId, statusCode.invalidArgument, reasons.busy(streamId));
		} else if (admission === 'full' && isJoined) {
			this.#shim.respond(streamId, statusCode.resourceExhausted, this.#text(reasons.tooManyCalls));
		} else if (admission === 'full') {
			this.#shim.respond(streamId, statusCode.unavailable, this.#text(reasons.tooMuchHeld));
		}

		return isJoined && admission === 'taken';
	}

	#onShimEnd(): void {
		this.#reportDisconnect();
		if (this.#state.name === 'joined') {
			this.#state.liveness[Symbol.dispose]();
			this.#state.vm.end();
		} else {
			this.#finish();
		}
	}

	#onShimClose(): void {
		this.#reportDisconnect();
		this.#enter({name: 'over'});
		void Promise.all(this.#legs).then(() => this.#ended.resolve(undefined));
	}

	/**
	 * Reports once that the shim has ended, unless the relay closed the connection or the VM is gone. A connection
	 * without data, such as a probe, is not reported.
	 */
	#reportDisconnect(): void {
		if (!this.#isDisconnected) {
			this.#isDisconnected = true;
			const isNews = (this.#state.name === 'joined' || this.#state.name === 'dialling') && this.#shim.bytes > 0;
			this.#notify({
				kind: 'shim-disconnected',
				count: this.#calls.size,
				bytes: this.#shim.bytes,
				durationMs: Math.round(this.#options.now() - this.#startedAt),
				isNews,
			});
		}
	}

	#dial(loss: Loss | undefined, pauseMs: number): void {
		const abort = new AbortController();
		this.#enter({name: 'dialling', abort, loss});
		this.#track(this.#connect(abort.signal, pauseMs));
	}

	/** Never rejects. */
	async #connect(signal: AbortSignal, pauseMs: number): Promise<void> {
		try {
			if (pauseMs > 0) {
				await pause(pauseMs, signal);
			}

			const socket = await this.#options.connectVm(signal);
			if (signal.aborted) {
				socket.destroy();
			} else {
				this.#join(socket);
			}
		} catch (error) {
			if (!signal.aborted) {
				this.fail(toError(error));
			}
		}
	}

	#join(socket: Duplex): void {
		const {now} = this.#options;
		const loss = this.#state.name === 'dialling' ? this.#state.loss : undefined;
		const liveness = this.#newLivenessProbe(
			() => this.#shim.isFull || vm.unacknowledgedBytes > maxUnacknowledgedBytes,
		);
		const violations = new Violations();
		const vm = new VmLeg(socket, {
			frames: frames => {
				const retired = this.#retired.callsOf(vm);
				if (retired === undefined) {
					liveness.heard();
				} else {
					this.#retired.heard(vm);
				}

				const reason = this.#onVmFrames(frames, violations, retired);
				if (reason === undefined) {
					this.#balance();
				} else {
					this.#onLegLost(vm, reason, {isPunished: true});
				}
			},
			drained: () => this.#balance(),
			lost: reason => this.#onLegLost(vm, reason),
		});
		this.#track(vm.closed);
		this.#enter({name: 'joined', vm, liveness, since: now()});
		if (loss !== undefined) {
			this.#notify({
				kind: 'vm-back',
				count: this.#calls.size,
				durationMs: Math.round(now() - loss.at),
				attempt: loss.attempt,
			});
		}

		vm.send(this.#calls.join());
		liveness.sent();
		this.#balance();
	}

	#newLivenessProbe(isExcused: () => boolean): LivenessProbe {
		const {connectVm, observer, now, redialPauseMs: pauseMs, liveness: timings} = this.#options;
		return new LivenessProbe({
			connectVm,
			observer,
			now,
			timings,
			pauseMs,
			isExcused,
			healthCheck: () => this.#calls.healthCheck,
			doubted: attempt => {
				this.#track(attempt);
				this.#watchDeadlines();
			},
			silent: reason => this.#onVmSilent(reason),
		});
	}

	/** Sets the timer that answers delayed calls before their deadline. */
	#watchDeadlines(): void {
		if (this.#state.name === 'joined' && this.#state.liveness.isDoubted) {
			this.#calls.delayChecks();
		}

		this.#deadlines.watch();
	}

	/** @returns the reason if the VM violated the protocol too often */
	#onVmFrames(
		frames: Iterable<Frame | OversizedFrame>,
		violations: Violations,
		on: ConnectionCalls | undefined,
	): Error | undefined {
		let tooMany: Error | undefined;
		this.#shim.together(() => {
			for (const frame of frames) {
				const violation = this.#onVmFrame(frame, on);
				if (violation !== undefined) {
					tooMany = violations.add(violation);
					this.#reportViolation('VM', violation);
					if (tooMany !== undefined) {
						return;
					}
				}
			}
		});
		return tooMany;
	}

	/**
	 * Forwards a frame of the VM, unless its stream was already answered.
	 * @param on its connection; the current one if absent
	 * @returns how the frame violates the protocol, if it does
	 */
	#onVmFrame(frame: Frame | OversizedFrame, on?: ConnectionCalls): Violation | undefined {
		const {streamId, type} = frame;
		switch (type) {
			case frameType.response:
				if (!(frame instanceof Frame)) {
					return this.#calls.standing(streamId, on) === 'open' &&
						this.#answer(streamId, statusCode.resourceExhausted, reasons.tooLarge('response', frame))
						? undefined
						: 'a message over the limit';
				}

				return this.#onResponse(frame, on);
			case frameType.data:
				return frame instanceof Frame
					? this.#passOn(frame, this.#calls.standing(streamId, on), 'data of no call')
					: 'a message over the limit';
			case frameType.request:
				return 'a request from the server side';
			default:
				return 'a frame of a reserved type';
		}
	}

	#onResponse(frame: Frame, on?: ConnectionCalls): Violation | undefined {
		const heir = this.#calls.heir(frame, on);
		const standing = this.#calls.response(frame, this.#options.now(), on);
		if (heir !== undefined && this.#calls.answer(heir, statusCode.ok, this.#options.now())) {
			this.#shim.send(frame.onStream(heir));
			return undefined;
		}

		if (standing !== 'lost') {
			return this.#passOn(frame, standing, 'a response to no call');
		}

		const what = reasons.exitStatusLost(statusName(peekStatus(frame.message)));
		const error = new AdaptorError({code: 'data-loss', what, where: this.#options.where});
		this.#notify({kind: 'answers-lost', error, count: 1});
		this.#answer(frame.streamId, statusCode.dataLoss, error.message);
		return undefined;
	}

	#passOn({bytes}: Frame, standing: Standing, violation: Violation): Violation | undefined {
		if (standing === 'open') {
			this.#shim.send(bytes);
		}

		return standing === 'unknown' ? violation : undefined;
	}

	/**
	 * @param isPunished the VM violated the protocol: pause before the redial, however long the connection lasted
	 */
	#onLegLost(vm: VmLeg, reason: Error, {isPunished = false} = {}): void {
		if (this.#retired.callsOf(vm) !== undefined) {
			this.#retired.lost(vm, reason);
			return;
		}

		const lost = this.#calls.lost();
		if (this.#shim.hasEnded) {
			this.#failLost(lost, reason);
			this.#finish();
			return;
		}

		this.#redial(reason, lost, isPunished);
	}

	/** The VM answers on a new connection, but not on this one: replaces it, and keeps it for late answers. */
	#onVmSilent(reason: Error): void {
		if (this.#state.name === 'joined') {
			this.#retired.add(this.#state.vm, this.#calls.retire());
			this.#redial(reason, [], false);
		}
	}

	#onRetiredLost(connection: ConnectionCalls, reason: Error): void {
		const lost = this.#calls.lost(connection);
		if (lost.length > 0) {
			this.#notify({kind: 'answers-lost', error: reason, count: lost.length});
			this.#failLost(lost, reason);
		}

		this.#balance();
	}

	/** @param lost the calls that fail */
	#redial(reason: Error, lost: readonly Call[], isPunished: boolean): void {
		const {now} = this.#options;
		const lasted = !isPunished && this.#state.name === 'joined' && now() - this.#state.since >= lastingMs;
		if (lasted) {
			this.#pauses = this.#newPauses();
			this.#shortLived = 0;
		}

		const attempt = lasted ? 1 : ++this.#shortLived;
		this.#notify({kind: 'vm-lost', error: reason, count: lost.length, attempt});
		this.#dial({reason, at: now(), attempt}, lasted ? 0 : this.#pauses.next().value);
		this.#failLost(lost, reason);
		this.#watchDeadlines();
		this.#balance();
	}

	#failLost(lost: readonly Call[], reason: Error): void {
		for (const {streamId, failure} of lost) {
			if (failure === undefined) {
				this.#answer(streamId, statusCode.unavailable, this.#text(reasons.lost(reason)));
			} else {
				this.#answer(streamId, statusCode.dataLoss, this.#text(reasons.exitStatusLost(failure)));
			}
		}
	}

	get #lateness(): string {
		if (this.#state.name === 'joined') {
			return this.#state.liveness.isDoubted ? reasons.silent : reasons.late;
		}

		return reasons.unreached(this.#state.name === 'dialling' ? this.#state.loss?.reason : undefined);
	}

	/** The shim has ended its direction: fails its open calls and ends the other direction. */
	#finish(): void {
		this.#answerAll(this.#calls.all(), this.#text(reasons.callerEnded));
		this.#enter({name: 'over'});
		this.#shim.end();
	}

	#answerAll(calls: readonly Call[], text: string): void {
		for (const {streamId} of calls) {
			this.#answer(streamId, statusCode.unavailable, text);
		}
	}

	/** @returns false if the stream has no open call */
	#answer(streamId: number, code: number, message: string): boolean {
		const isOpen = this.#calls.answer(streamId, code, this.#options.now());
		if (isOpen) {
			this.#shim.respond(streamId, code, message);
		}

		return isOpen;
	}

	/** Reads from each side only while the other side accepts data. */
	#balance(): void {
		const vm = this.#state.name === 'joined' ? this.#state.vm : undefined;
		this.#shim.isReading = !this.#shim.hasUnreadAnswers && vm?.isFull !== true;
		if (vm !== undefined) {
			vm.isReading = !this.#shim.isFull;
		}

		this.#retired.closeIdle();
		this.#retired.isReading = !this.#shim.isFull;
	}

	#newPauses(): Generator<number, never> {
		return backOff(...this.#options.redialPauseMs);
	}

	#track(leg: Promise<unknown>): void {
		this.#legs.add(leg);
		void leg.then(() => this.#legs.delete(leg));
	}

	#text(what: string): string {
		return new AdaptorError({code: 'unavailable', what, where: this.#options.where}).message;
	}
}

/**
 * How a frame of the shim violates the protocol, if it does. A request over the limit is no violation: it is answered.
 */
function shimViolation(frame: Frame | OversizedFrame): Violation | undefined {
	switch (frame.type) {
		case frameType.request:
			return undefined;
		case frameType.data:
			return frame instanceof Frame ? undefined : 'a message over the limit';
		case frameType.response:
			return 'a response from the client side';
		default:
			return 'a frame of a reserved type';
	}
}

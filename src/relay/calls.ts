/**
 * The calls of one shim connection: which are open, their frames for a replay, and their deadlines. Bookkeeping only:
 * no sockets, timers or clock. It works on whole frames: a partial frame of the VM must never reach the shim, and only
 * a whole frame of the shim can be sent again.
 *
 *   request ──▶ open ── the VM's response ──▶ answered      (forwarded)
 *                │ ▲
 *   lost ────────┤ └── sent again on the next connection    (replayable calls, and calls that were never sent)
 *                └──▶ answered with UNAVAILABLE             (all other calls, and calls at their deadline)
 *
 * An answered call is closed, and a late response to it is dropped. The stream ids of such calls are remembered: a late
 * response is allowed, but a response without a call violates the protocol.
 *
 * A connection that is silent is not lost but retired: the VM may still answer on it. A replayable call is then sent
 * again and may be answered on several connections, and the first answer counts. There is one exception. The agent
 * forgets a process when it has sent the exit status once. If WaitProcess fails on one connection, its exit status may
 * still arrive on another one. So a failure only counts if no other answer can arrive. (Agents answer NOT_FOUND, and
 * INTERNAL before kata 3.9 or so; both also have other causes, so all failures are treated alike.)
 */
import {echoed} from '../core/errors.ts';
import type {Observer} from '../core/observer.ts';
import type {Frame} from '../ttrpc/frame.ts';
import {peekMethod, peekStatus} from '../ttrpc/message.ts';
import {statusCode, statusName} from '../ttrpc/status.ts';
import type {ConnectionEvent} from './events.ts';

export type CallEvent = Extract<ConnectionEvent, {readonly kind: 'agent-call' | 'late-answer' | 'calls-replayed'}>;

const healthCheck = 'grpc.Health/Check';
const waitProcess = 'grpc.AgentService/WaitProcess';
const getOomEvent = 'grpc.AgentService/GetOOMEvent';

/** Methods that change nothing and wait for an event, so sending them again has the same effect. */
const replayableMethods: ReadonlySet<string> = new Set([healthCheck, waitProcess, getOomEvent]);

export interface CallLimits {
	/** Maximum number of open calls. A shim has a few dozen; the limit bounds memory. */
	readonly maxOpen: number;
	/** Maximum number of bytes of requests that are kept for sending or replay. */
	readonly maxHeldBytes: number;
}

/** Two messages of the maximum size fit. */
export const defaultCallLimits: CallLimits = {maxOpen: 1024, maxHeldBytes: 9 * 1024 * 1024};

/**
 * The request of a replayable call is short: ids of a container and a process. A longer request is not kept for a
 * replay; if its connection is lost, its call fails.
 */
const maxReplayableBytes = 4096;

/** The relay answers this long before the deadline of the shim, so that the failure has a reason. */
const answerAheadMs = 500;

export interface Call {
	readonly streamId: number;
	/** `service/method`. */
	readonly method: string;
	/** From the clock of the caller, like all times here. */
	readonly startedAt: number;
	/**
	 * When the relay must answer: slightly before the deadline of the shim; undefined without a deadline.
	 */
	readonly answerBy: number | undefined;
	/** The name of the status with which the VM failed the call, if that failure does not count. */
	readonly failure: string | undefined;
}

interface OpenCall extends Call {
	failure: string | undefined;
	requestBytes: number;
	responseBytes: number;
	/** It is sent again on the next connection. */
	replayable: boolean;
	/** Its frames, while they may have to be sent (again). */
	held: Buffer[];
	/** The connections on which the request was sent and the VM may answer it at any time. */
	readonly awaitedOn: Set<ConnectionCalls>;
	/** A connection was lost on which an answer to it was expected. */
	isAnswerLost: boolean;
	/**
	 * The call waited for a connection, or its connection is silent. So its deadline may pass before the VM answers.
	 */
	delayed: boolean;
}

/** `busy`: the stream already has an open call; `full`: too many calls, or too many held bytes. */
export type Admission = 'taken' | 'busy' | 'full';

/** `late`: the call was already answered, or another answer counts; `unknown`: no call of this connection. */
export type Standing = 'open' | 'late' | 'unknown';

/** The calls that the VM may still answer on one connection. */
export class ConnectionCalls {
	/** By stream id. */
	readonly awaited = new Map<number, OpenCall>();
	readonly #maxLate: number;
	/** Streams that were answered, but not by the VM on this connection, with their methods. */
	readonly #late = new Map<number, string>();

	constructor(maxLate: number) {
		this.#maxLate = maxLate;
	}

	expect(call: OpenCall): void {
		this.awaited.set(call.streamId, call);
		this.#late.delete(call.streamId);
		call.awaitedOn.add(this);
	}

	/** The VM has answered. */
	answered(call: OpenCall): void {
		this.awaited.delete(call.streamId);
		call.awaitedOn.delete(this);
	}

	/**
	 * The call was answered by the relay or on another connection. Limited, so that a VM that never answers cannot fill
	 * the memory.
	 */
	expectLate(call: OpenCall): void {
		this.answered(call);
		const [oldest] = this.#late.keys();
		if (oldest !== undefined && this.#late.size >= this.#maxLate) {
			this.#late.delete(oldest);
		}

		this.#late.set(call.streamId, call.method);
	}

	/** The method of a stream that may still get a late response. */
	lateMethod(streamId: number): string | undefined {
		return this.#late.get(streamId);
	}

	/** The late response has come. */
	forget(streamId: number): void {
		this.#late.delete(streamId);
	}
}

export class Calls {
	readonly #observer: Observer<CallEvent>;
	readonly #limits: CallLimits;
	/** By stream id, in the order of their requests. */
	readonly #open = new Map<number, OpenCall>();
	/** The open calls that are replayable health checks. */
	readonly #checks = new Set<OpenCall>();
	/** The connection in use, or the next one while there is none. */
	#current: ConnectionCalls;
	#heldBytes = 0;

	constructor(observer: Observer<CallEvent>, limits: CallLimits) {
		this.#observer = observer;
		this.#limits = limits;
		this.#current = new ConnectionCalls(limits.maxOpen);
	}

	/** How many are open. */
	get size(): number {
		return this.#open.size;
	}

	get heldBytes(): number {
		return this.#heldBytes;
	}

	/**
	 * @param isJoined whether it can be sent now; otherwise it is held
	 * @param now monotonic, in milliseconds
	 */
	request(frame: Frame, isJoined: boolean, now: number): Admission {
		const {streamId, bytes} = frame;
		if (this.#open.has(streamId)) {
			return 'busy';
		}

		const fits = this.#fits(bytes);
		if (this.#open.size >= this.#limits.maxOpen || (!isJoined && !fits)) {
			return 'full';
		}

		const {service, method, timeoutNano} = peekMethod(frame.message) ?? {service: '', method: '', timeoutNano: 0n};
		const name = echoed(`${service}/${method}`);
		const replayable = replayableMethods.has(name) && frame.flags === 0 && bytes.length <= maxReplayableBytes;
		const timeoutMs = Number(timeoutNano) / 1e6;
		const call: OpenCall = {
			streamId,
			method: name,
			startedAt: now,
			requestBytes: bytes.length,
			responseBytes: 0,
			replayable,
			held: [],
			failure: undefined,
			awaitedOn: new Set(),
			isAnswerLost: false,
			delayed: !isJoined,
			answerBy: timeoutMs > 0 ? now + timeoutMs - Math.min(answerAheadMs, timeoutMs / 10) : undefined,
		};
		if (!isJoined || (replayable && fits)) {
			this.#hold(call, bytes);
		}

		this.#open.set(streamId, call);
		if (isJoined) {
			this.#current.expect(call);
		}

		if (name === healthCheck && call.replayable && call.held.length > 0) {
			this.#checks.add(call);
		}

		return 'taken';
	}

	/** The request of the oldest health check that is open. */
	get healthCheck(): Buffer | undefined {
		const [oldest] = this.#checks;
		return oldest?.held[0];
	}

	/**
	 * The connection is silent: the relay answers its health checks before their deadline, like calls that waited for a
	 * connection.
	 */
	delayChecks(): void {
		for (const call of this.#checks) {
			call.delayed = true;
		}
	}

	/**
	 * Further data of a request. `taken`: as for a request. `full`: it cannot be held completely, and the call must be
	 * failed. `retired`: the call must be failed, since its connection is retired and is not written to any more.
	 * `unknown`: no open call has this stream.
	 */
	data({streamId, bytes}: Frame, isJoined: boolean): 'taken' | 'full' | 'retired' | 'unknown' {
		const call = this.#open.get(streamId);
		if (call === undefined) {
			return 'unknown';
		}

		if (call.awaitedOn.size > 0 && !call.awaitedOn.has(this.#current)) {
			return 'retired';
		}

		call.requestBytes += bytes.length;
		if (isJoined) {
			// A call with further data is never replayable.
			call.replayable = false;
			this.#checks.delete(call);
			this.#release(call);
		} else if (this.#fits(bytes)) {
			this.#hold(call, bytes);
		} else {
			return 'full';
		}

		return 'taken';
	}

	/** The standing of the call of a frame from the VM. */
	standing(streamId: number, on = this.#current): Standing {
		return on.awaited.has(streamId) ? 'open' : on.lateMethod(streamId) === undefined ? 'unknown' : 'late';
	}

	/**
	 * Closes the call if it is open and this answer counts. `lost`: the call is still open and must be failed, since
	 * the answer that counts is lost.
	 */
	response({streamId, message, bytes}: Frame, now: number, on = this.#current): Standing | 'lost' {
		const call = on.awaited.get(streamId);
		if (call === undefined) {
			const standing = this.standing(streamId, on);
			on.forget(streamId);
			return standing;
		}

		on.answered(call);
		call.responseBytes = bytes.length;
		const code = peekStatus(message);
		if (call.method === waitProcess && code !== statusCode.ok) {
			// Not kept for a replay: it would fail again.
			call.replayable = false;
			this.#release(call);
			if (call.awaitedOn.size > 0 || call.isAnswerLost) {
				call.failure = statusName(code);
				return call.awaitedOn.size > 0 ? 'late' : 'lost';
			}
		}

		if (on !== this.#current) {
			this.#observer.notify({
				kind: 'late-answer',
				method: call.method,
				durationMs: Math.round(now - call.startedAt),
				code: statusName(code),
			});
		}

		this.#close(call, code, now);
		return 'open';
	}

	/**
	 * The stream of an open call that a late response also answers. The VM sends each event once, to the call that has
	 * waited longest. If that call was sent again and is already answered, its response contains an event that the next
	 * call is waiting for.
	 */
	heir({streamId, message}: Frame, on = this.#current): number | undefined {
		return on.lateMethod(streamId) === getOomEvent && peekStatus(message) === statusCode.ok
			? this.#open.values().find(({method}) => method === getOomEvent)?.streamId
			: undefined;
	}

	/** Closes a call that the relay answers. False if the call is not open. */
	answer(streamId: number, code: number, now: number): boolean {
		const call = this.#open.get(streamId);
		if (call === undefined) {
			return false;
		}

		this.#close(call, code, now);
		return true;
	}

	/** The frames to send first on a new connection, in the order of the requests. */
	*join(): Generator<Buffer> {
		let replayed = 0;
		for (const call of this.#open.values()) {
			if (call.held.length === 0) {
				continue;
			}

			replayed += call.isAnswerLost || call.awaitedOn.size > 0 ? 1 : 0;
			yield* call.held;
			this.#current.expect(call);
			if (!call.replayable) {
				this.#release(call);
			}
		}

		if (replayed > 0) {
			this.#observer.notify({kind: 'calls-replayed', count: replayed});
		}
	}

	/**
	 * A connection to the VM is lost, and nothing more comes on it.
	 * @returns the calls that are lost with it and still open; the other calls wait for the next connection, or for an
	 * answer on another connection
	 */
	lost(on = this.#current): readonly Call[] {
		for (const call of on.awaited.values()) {
			on.answered(call);
			call.isAnswerLost = true;
		}

		if (on === this.#current) {
			this.retire();
		}

		return [...this.#open.values()].filter(({awaitedOn, held}) => awaitedOn.size === 0 && held.length === 0);
	}

	/**
	 * The current connection is silent and is replaced by the next one. The VM may still answer on it, until `lost` is
	 * called with what is returned.
	 */
	retire(): ConnectionCalls {
		const retired = this.#current;
		this.#current = new ConnectionCalls(this.#limits.maxOpen);
		for (const call of this.#open.values()) {
			call.delayed = true;
		}

		return retired;
	}

	all(): readonly Call[] {
		return [...this.#open.values()];
	}

	/** The earliest deadline of the delayed calls. */
	get nextDeadline(): number | undefined {
		return this.#delayed().reduce<number | undefined>(
			(next, {answerBy}) => (next === undefined || answerBy < next ? answerBy : next),
			undefined,
		);
	}

	/** The delayed calls whose deadline has passed, still open. */
	expired(now: number): readonly Call[] {
		return this.#delayed().filter(({answerBy}) => answerBy <= now);
	}

	#delayed(): ReadonlyArray<OpenCall & {readonly answerBy: number}> {
		return [...this.#open.values()].filter(
			(call): call is OpenCall & {readonly answerBy: number} => call.delayed && call.answerBy !== undefined,
		);
	}

	#close(call: OpenCall, code: number, now: number): void {
		this.#open.delete(call.streamId);
		this.#checks.delete(call);
		this.#release(call);
		for (const connection of call.awaitedOn) {
			connection.expectLate(call);
		}

		this.#observer.notify({
			kind: 'agent-call',
			method: call.method,
			durationMs: Math.round((now - call.startedAt) * 10) / 10,
			code: statusName(code),
			requestBytes: call.requestBytes,
			responseBytes: call.responseBytes,
		});
	}

	#fits(bytes: Buffer): boolean {
		return this.#heldBytes + bytes.length <= this.#limits.maxHeldBytes;
	}

	/** Copies the frame, because it is a view of a chunk that may be much larger. */
	#hold(call: OpenCall, bytes: Buffer): void {
		call.held.push(Buffer.from(bytes));
		this.#heldBytes += bytes.length;
	}

	#release(call: OpenCall): void {
		this.#heldBytes -= call.held.reduce((sum, {length}) => sum + length, 0);
		call.held = [];
	}
}

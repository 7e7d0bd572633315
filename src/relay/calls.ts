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
 */
import {echoed} from '../core/errors.ts';
import type {Observer} from '../core/observer.ts';
import type {Frame} from '../ttrpc/frame.ts';
import {peekMethod, peekStatus} from '../ttrpc/message.ts';
import {statusName} from '../ttrpc/status.ts';
import type {ConnectionEvent} from './events.ts';

type CallEvent = Extract<ConnectionEvent, {readonly kind: 'agent-call'}>;

const healthCheck = 'grpc.Health/Check';

/** Methods that change nothing and wait for an event, so sending them again has the same effect. */
const replayableMethods: ReadonlySet<string> = new Set([
	healthCheck,
	'grpc.AgentService/WaitProcess',
	'grpc.AgentService/GetOOMEvent',
]);

export interface CallLimits {
	/** Maximum number of open calls. A shim has a few dozen; the limit bounds memory. */
	readonly maxOpen: number;
	/** Maximum number of bytes of requests that are kept for sending or replay. */
	readonly maxHeldBytes: number;
}

/** Two messages of the maximum size fit. */
export const defaultCallLimits: CallLimits = {maxOpen: 1024, maxHeldBytes: 9 * 1024 * 1024};

/**
 * The request of a replayable call is short: ids of a container and a process. A longer one is not kept, and fails.
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
}

interface OpenCall extends Call {
	/** It is sent again on the next connection. */
	replayable: boolean;
	/** Its frames, while they may have to be sent (again). */
	held: Buffer[];
	/** The request was sent on the current connection, so the VM may answer it at any time. */
	isSent: boolean;
	/** It waited for a connection, or waits on a silent one, so its deadline may pass before the VM answers. */
	delayed: boolean;
}

/** `busy`: the stream already has an open call; `full`: too many calls, or too many held bytes. */
export type Admission = 'taken' | 'busy' | 'full';

/** `late`: the relay has already answered the call; `unknown`: no call of this connection. */
export type Standing = 'open' | 'late' | 'unknown';

export class Calls {
	readonly #observer: Observer<CallEvent>;
	readonly #limits: CallLimits;
	/** By stream id, in the order of their requests. */
	readonly #open = new Map<number, OpenCall>();
	/** The open health checks that are replayable. */
	readonly #checks = new Set<OpenCall>();
	/** Streams of the current connection that the relay answered before the VM did. */
	readonly #late = new Set<number>();
	#heldBytes = 0;

	constructor(observer: Observer<CallEvent>, limits: CallLimits) {
		this.#observer = observer;
		this.#limits = limits;
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
			replayable,
			held: [],
			isSent: isJoined,
			delayed: !isJoined,
			answerBy: timeoutMs > 0 ? now + timeoutMs - Math.min(answerAheadMs, timeoutMs / 10) : undefined,
		};
		if (!isJoined || (replayable && fits)) {
			this.#hold(call, bytes);
		}

		this.#open.set(streamId, call);
		this.#late.delete(streamId);
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
	 * failed. `unknown`: no open call has this stream.
	 */
	data({streamId, bytes}: Frame, isJoined: boolean): 'taken' | 'full' | 'unknown' {
		const call = this.#open.get(streamId);
		if (call === undefined) {
			return 'unknown';
		}

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
	standing(streamId: number): Standing {
		return this.#open.get(streamId)?.isSent === true ? 'open' : this.#late.has(streamId) ? 'late' : 'unknown';
	}

	/** Closes the call if it is open. */
	response({streamId, message}: Frame, now: number): Standing {
		const standing = this.standing(streamId);
		const call = this.#open.get(streamId);
		if (standing === 'open' && call !== undefined) {
			this.#close(call, peekStatus(message), now);
		} else {
			this.#late.delete(streamId);
		}

		return standing;
	}

	/** Closes a call that the relay answers. False if the call is not open. */
	answer(streamId: number, code: number, now: number): boolean {
		const call = this.#open.get(streamId);
		if (call === undefined) {
			return false;
		}

		this.#close(call, code, now);
		if (call.isSent) {
			this.#expectLate(streamId);
		}

		return true;
	}

	/** Limited to the maximum number of open calls, so that a VM that never answers cannot fill the memory. */
	#expectLate(streamId: number): void {
		const [oldest] = this.#late;
		if (oldest !== undefined && this.#late.size >= this.#limits.maxOpen) {
			this.#late.delete(oldest);
		}

		this.#late.add(streamId);
	}

	/** The frames to send first on a new connection, in the order of the requests. */
	*join(): Generator<Buffer> {
		for (const call of this.#open.values()) {
			yield* call.held;
			call.isSent = true;
			if (!call.replayable) {
				this.#release(call);
			}
		}
	}

	/**
	 * The connection to the VM is lost.
	 * @returns the calls that are lost with it, still open; the others wait for the next connection
	 */
	lost(): readonly Call[] {
		const calls = [...this.#open.values()];
		this.#late.clear();
		for (const call of calls) {
			call.delayed = true;
			call.isSent = false;
		}

		return calls.filter(({held}) => held.length === 0);
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
		this.#observer.notify({
			kind: 'agent-call',
			method: call.method,
			durationMs: Math.round((now - call.startedAt) * 10) / 10,
			code: statusName(code),
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

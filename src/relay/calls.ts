/**
 * The calls of one shim connection: which are open, what each would need to be made again, and until when it is to be
 * answered. Bookkeeping alone: no sockets, no timers, no time of its own. Whole frames come in, because only a frame
 * that is whole can be kept from the shim when the VM's connection dies in the middle of it, and sent again when it
 * died before its end.
 *
 *   request ──▶ open ── the VM's response ──▶ answered      (forwarded)
 *                │ ▲
 *   lost ────────┤ └── sent again on the next connection    (what only waits; what was never sent)
 *                └──▶ answered with UNAVAILABLE             (everything else, and whatever's time is up)
 *
 * A stream that was answered is no longer here, and a late response to it finds nobody. That the VM may still send one
 * is remembered: a response to no call at all breaks the protocol, a late one does not.
 */
import {echoed} from '../core/errors.ts';
import type {Observer} from '../core/observer.ts';
import type {Frame} from '../ttrpc/frame.ts';
import {peekMethod, peekStatus} from '../ttrpc/message.ts';
import {statusName} from '../ttrpc/status.ts';
import type {ConnectionEvent} from './events.ts';

type CallEvent = Extract<ConnectionEvent, {readonly kind: 'agent-call'}>;

const healthCheck = 'grpc.Health/Check';

/** Calls that change nothing and end when something happens: made again, they mean the same. */
const replayableMethods: ReadonlySet<string> = new Set([
	healthCheck,
	'grpc.AgentService/WaitProcess',
	'grpc.AgentService/GetOOMEvent',
]);

export interface CallLimits {
	/** Calls that are open at a time. A shim has a few dozen; more would only be our memory. */
	readonly maxOpen: number;
	/** Bytes of requests that are kept to be sent, or sent again. */
	readonly maxHeldBytes: number;
}

/** Two of the largest messages fit. */
export const defaultCallLimits: CallLimits = {maxOpen: 1024, maxHeldBytes: 9 * 1024 * 1024};

/**
 * A waiting call's request is short: ids of a container and a process. What is not, is not kept: it fails with the
 * rest.
 */
const maxReplayableBytes = 4096;

/** So long before the shim gives up it is told why: the failure then has a reason instead of a time-out. */
const answerAheadMs = 500;

export interface Call {
	readonly streamId: number;
	/** `service/method`. */
	readonly method: string;
	/** Of the same clock as all times here. */
	readonly startedAt: number;
	/**
	 * When it is to be answered at the latest, a little ahead of the shim's own deadline; undefined when it has none.
	 */
	readonly answerBy: number | undefined;
}

interface OpenCall extends Call {
	/** It only waits: it is made again on the next connection. */
	replayable: boolean;
	/** Its frames, as long as they may have to be sent (again). */
	held: Buffer[];
	/** The present connection was sent its request: that the VM answers it is right, however late. */
	isSent: boolean;
	/** It had to wait for a connection, or waits on a silent one: its time may be up before the VM can answer. */
	delayed: boolean;
}

/** `busy`: the stream has a call that runs; `full`: too many calls, or too many bytes held. */
export type Admission = 'taken' | 'busy' | 'full';

/** `late`: a call that was answered already, by the relay; `unknown`: no call of this connection. */
export type Standing = 'open' | 'late' | 'unknown';

export class Calls {
	readonly #observer: Observer<CallEvent>;
	readonly #limits: CallLimits;
	/** By stream id, in the order of their requests. */
	readonly #open = new Map<number, OpenCall>();
	/** The health checks among them that would be made again. */
	readonly #checks = new Set<OpenCall>();
	/** Streams of the present connection that the relay answered before the VM did. */
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
	 * @param isJoined whether it can be sent now; if not, it is held
	 * @param now milliseconds that only grow
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
	 * The connection is silent: the health checks on it are to be answered in time, like calls that had to wait for
	 * one.
	 */
	delayChecks(): void {
		for (const call of this.#checks) {
			call.delayed = true;
		}
	}

	/**
	 * More of a request. `taken` means as much as of a request; it may be held in full only, `full` then says that the
	 * call is to be failed. `unknown`: of no call that is open.
	 */
	data({streamId, bytes}: Frame, isJoined: boolean): 'taken' | 'full' | 'unknown' {
		const call = this.#open.get(streamId);
		if (call === undefined) {
			return 'unknown';
		}

		if (isJoined) {
			// Whatever its name says, it is no simple question.
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

	/** What a frame of the VM belongs to. */
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

	/** The relay itself answers. False when the call is not open (any more). */
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

	/** As many as can be open: a VM that answers none of its calls is not to fill our memory. */
	#expectLate(streamId: number): void {
		const [oldest] = this.#late;
		if (oldest !== undefined && this.#late.size >= this.#limits.maxOpen) {
			this.#late.delete(oldest);
		}

		this.#late.add(streamId);
	}

	/** What a new connection to the VM is to be sent first, in the order of the requests. */
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
	 * @returns the calls that are lost with it, still open; the others wait for the next one
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

	/** When the next of the calls that were delayed has to be answered. */
	get nextDeadline(): number | undefined {
		return this.#delayed().reduce<number | undefined>(
			(next, {answerBy}) => (next === undefined || answerBy < next ? answerBy : next),
			undefined,
		);
	}

	/** The delayed calls whose time is up, still open. */
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

	/** A copy: the frame is a view of a chunk that may be much larger. */
	#hold(call: OpenCall, bytes: Buffer): void {
		call.held.push(Buffer.from(bytes));
		this.#heldBytes += bytes.length;
	}

	#release(call: OpenCall): void {
		this.#heldBytes -= call.held.reduce((sum, {length}) => sum + length, 0);
		call.held = [];
	}
}

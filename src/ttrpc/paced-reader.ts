/**
 * Reads a socket as frames, with a budget for each turn of the event loop: a peer that floods its connection does not
 * keep the others waiting.
 *
 *   data ──▶ within the budget: delivered ──▶ budget spent: the rest waits, the socket is paused
 *                  ▲──────────────── next turn (setImmediate): a new budget ─────────────────┘
 *
 * The end of the stream and the close are told after the frames that came before them. Knows no streams, no messages
 * and no roles.
 */
import type {Duplex} from 'node:stream';
import {FrameDecoder, type Frame, type OversizedFrame} from './frame.ts';

/** What one connection may use of one turn of the event loop. */
export interface TurnBudget {
	/** A chunk counts as a frame too: a TLS record may be as small as one. */
	readonly frames: number;
	/** The chunk that exceeds it is still taken. */
	readonly bytes: number;
}

/** 256 frames take a fraction of a millisecond. Larger messages are worth as much of the encryption's time. */
export const defaultTurnBudget: TurnBudget = {frames: 256, bytes: 256 * 1024};

export interface PacedReaderEvents {
	/**
	 * In their order, as many as the budget allows; none when no frame ends in what arrived. Frames that are not
	 * iterated over come again in a later turn.
	 */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** The peer sends no more. */
	ended(): void;
	/** The socket is closed. Once, and nothing after it. */
	closed(): void;
}

export interface PacedReaderOptions {
	/** Bytes of the largest message, without its header; the protocol's limit if absent. */
	readonly maxMessageLength?: number;
	readonly budget?: TurnBudget;
}

export class PacedReader {
	readonly #socket: Duplex;
	readonly #events: PacedReaderEvents;
	readonly #decoder: FrameDecoder;
	readonly #budget: TurnBudget;
	#framesLeft: number;
	#bytesLeft: number;
	/** Ends the turn. Undefined while nothing of the budget is used. */
	#turn: NodeJS.Immediate | undefined;
	/** A chunk of which frames may be left. */
	#current: ArrayIterator<Frame | OversizedFrame> | undefined;
	readonly #chunks: Buffer[] = [];
	#isWanted = true;
	#isStopped = false;
	/** It happened, and is told once the frames before it are delivered. */
	#owesEnd = false;
	#owesClose = false;

	/** @param socket may be paused, and may hold bytes that were read and unshifted again */
	constructor(
		socket: Duplex,
		events: PacedReaderEvents,
		{maxMessageLength, budget = defaultTurnBudget}: PacedReaderOptions = {},
	) {
		this.#socket = socket;
		this.#events = events;
		this.#decoder = new FrameDecoder(maxMessageLength);
		this.#budget = budget;
		({frames: this.#framesLeft, bytes: this.#bytesLeft} = budget);
		socket.on('data', this.#onData).once('end', this.#onEnd).once('close', this.#onClose);
		socket.resume();
		// It may have ended, with nobody listening.
		if (socket.closed) {
			queueMicrotask(this.#onClose);
		} else if (socket.readableEnded) {
			queueMicrotask(this.#onEnd);
		}
	}

	/** Whether more is to be read: back-pressure. Frames of a chunk that is being delivered still come. */
	set isReading(shall: boolean) {
		this.#isWanted = shall;
		if (shall && this.#hasBacklog) {
			this.#startTurn();
		}

		this.#applyReading();
	}

	/** No more frames are delivered, nor the end of the stream; that the socket is closed still is. Idempotent. */
	stop(): void {
		this.#isStopped = true;
		this.#current = undefined;
		this.#chunks.length = 0;
	}

	get #hasBacklog(): boolean {
		return this.#current !== undefined || this.#chunks.length > 0;
	}

	readonly #onData = (chunk: Buffer): void => {
		if (this.#isStopped) {
			return;
		}

		this.#chunks.push(chunk);
		this.#framesLeft--;
		this.#bytesLeft -= chunk.length;
		this.#startTurn();
		this.#deliver();
	};

	readonly #onEnd = (): void => {
		this.#owesEnd = true;
		this.#finish();
	};

	readonly #onClose = (): void => {
		this.#owesClose = true;
		if (this.#hasBacklog) {
			this.#startTurn();
		} else {
			this.#finish();
		}
	};

	readonly #onTurn = (): void => {
		this.#turn = undefined;
		({frames: this.#framesLeft, bytes: this.#bytesLeft} = this.#budget);
		if (this.#hasBacklog && (this.#isWanted || this.#owesClose)) {
			this.#startTurn();
			this.#deliver();
		} else {
			this.#applyReading();
		}
	};

	#startTurn(): void {
		this.#turn ??= setImmediate(this.#onTurn);
	}

	#deliver(): void {
		this.#events.frames(this.#take());
		this.#applyReading();
		this.#finish();
	}

	*#take(): Generator<Frame | OversizedFrame, void, undefined> {
		while (this.#framesLeft > 0) {
			const frame = this.#next();
			if (frame === undefined) {
				return;
			}

			this.#framesLeft--;
			yield frame;
		}
	}

	#next(): Frame | OversizedFrame | undefined {
		for (;;) {
			if (this.#current === undefined) {
				const chunk = this.#chunks.shift();
				if (chunk === undefined) {
					return undefined;
				}

				this.#current = this.#decoder.push(chunk).values();
			}

			const next = this.#current.next();
			if (next.done !== true) {
				return next.value;
			}

			this.#current = undefined;
		}
	}

	#applyReading(): void {
		const shall =
			this.#isStopped || (this.#isWanted && this.#framesLeft > 0 && this.#bytesLeft > 0 && !this.#hasBacklog);
		if (shall !== this.#socket.isPaused()) {
			return;
		}

		if (shall) {
			this.#socket.resume();
		} else {
			this.#socket.pause();
		}
	}

	/** Tells what came after the last frame. */
	#finish(): void {
		if (this.#hasBacklog) {
			return;
		}

		if (this.#owesEnd && !this.#isStopped) {
			this.#owesEnd = false;
			this.#events.ended();
		}

		if (this.#owesClose) {
			this.#owesClose = false;
			this.#socket.off('data', this.#onData).off('end', this.#onEnd);
			this.#events.closed();
		}
	}
}

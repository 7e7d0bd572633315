/**
 * Reads a socket as frames, with a budget for each turn of the event loop: a peer that floods its connection does not
 * keep the others waiting.
 *
 *   data ──▶ within the budget: delivered ──▶ budget spent: the rest waits, the socket is paused
 *                  ▲──────────────── next turn (setImmediate): a new budget ─────────────────┘
 *
 * The end of the stream and the close are reported after the frames that arrived before them. Knows no streams, no
 * messages and no roles.
 */
import type {Duplex} from 'node:stream';
import {FrameDecoder, type Frame, type OversizedFrame} from './frame.ts';

/** The budget of one connection for one turn of the event loop. */
export interface TurnBudget {
	/** A chunk counts as a frame too: a TLS record may be as small as one. */
	readonly frames: number;
	/** The chunk that exceeds it is still accepted. */
	readonly bytes: number;
}

/** 256 frames take a fraction of a millisecond. Larger messages cost about as much time for encryption. */
export const defaultTurnBudget: TurnBudget = {frames: 256, bytes: 256 * 1024};

export interface PacedReaderEvents {
	/**
	 * Frames in order, as many as the budget allows; none if no frame was completed. Frames that were not iterated are
	 * delivered again in a later turn.
	 */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** The peer sends no more. */
	ended(): void;
	/** The socket is closed. Called once, as the last event. */
	closed(): void;
}

export interface PacedReaderOptions {
	/** Bytes of the largest message without its header; the limit of the protocol if absent. */
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
	/** The pending immediate that starts the next turn. Undefined while the budget is unused. */
	#turn: NodeJS.Immediate | undefined;
	/** A chunk that may contain more frames. */
	#current: ArrayIterator<Frame | OversizedFrame> | undefined;
	readonly #chunks: Buffer[] = [];
	#isWanted = true;
	#isStopped = false;
	/** An event that is reported after the frames before it were delivered. */
	#owesEnd = false;
	#owesClose = false;

	/** @param socket may be paused, and may contain bytes that were unshifted */
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
		// The socket may have ended before a listener was added.
		if (socket.closed) {
			queueMicrotask(this.#onClose);
		} else if (socket.readableEnded) {
			queueMicrotask(this.#onEnd);
		}
	}

	/** Pauses or resumes reading: back-pressure. Frames of the current chunk are still delivered. */
	set isReading(shall: boolean) {
		this.#isWanted = shall;
		if (shall && this.#hasBacklog) {
			this.#startTurn();
		}

		this.#applyReading();
	}

	/** Delivers no more frames and no end of the stream, only the close of the socket. Idempotent. */
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

	/** Reports the events after the last frame. */
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

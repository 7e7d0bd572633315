/**
 * Sends and receives frames on one socket: the only I/O of ttrpc. Does not know streams, messages or roles. Takes over
 * the socket.
 */
import type {Duplex} from 'node:stream';
import {AdaptorError} from '../core/errors.ts';
import {Frame, type OversizedFrame} from './frame.ts';
import {PacedReader} from './paced-reader.ts';

export interface ConnectionEvents {
	frame(frame: Frame): void;
	oversized(frame: OversizedFrame): void;
	/**
	 * Called once, as the last event. The end of the peer's stream counts as the end of the connection, because a ttrpc
	 * peer never ends only its sending direction.
	 */
	closed(reason: Error): void;
}

export interface ConnectionOptions {
	/** Bytes of the largest accepted message, without its header. */
	readonly maxMessageLength: number;
	/**
	 * Accept no frames while the peer does not read the frames sent to it (that is, while more than the high-water mark
	 * of the socket waits to be written). For servers only: if both sides did this, each could wait for the other.
	 */
	readonly holdReads: boolean;
}

export class Connection {
	readonly #socket: Duplex;
	readonly #reader: PacedReader;
	readonly #events: ConnectionEvents;
	readonly #holdReads: boolean;
	readonly #closed = Promise.withResolvers<undefined>();
	/** Why it ends; the first cause wins. */
	#reason: Error | undefined;
	#isOver = false;

	/** @param socket may contain bytes that were unshifted, and may be paused */
	constructor(socket: Duplex, events: ConnectionEvents, {maxMessageLength, holdReads}: ConnectionOptions) {
		this.#socket = socket;
		this.#events = events;
		this.#holdReads = holdReads;
		socket.on('drain', this.#onDrain).on('error', this.#onError);
		this.#reader = new PacedReader(
			socket,
			{
				frames: frames => this.#onFrames(frames),
				ended: () => this.destroy(closedByPeer()),
				closed: () => this.#onClose(),
			},
			{maxMessageLength},
		);
	}

	/** Resolves when the socket is closed. */
	get closed(): Promise<undefined> {
		return this.#closed.promise;
	}

	/** Sends a whole frame with its header. Does nothing after the end. */
	send(frame: Buffer): void {
		if (this.#isOver || this.#socket.writableEnded) {
			return;
		}

		if (!this.#socket.write(frame) && this.#holdReads) {
			this.#reader.isReading = false;
		}
	}

	/**
	 * Closes when everything sent has been passed on. A peer that does not read delays this forever: then destroy it.
	 * Idempotent.
	 */
	finish(reason: Error): void {
		if (!this.#isOver && !this.#socket.writableEnded) {
			this.#reason ??= reason;
			this.#socket.end(() => this.destroy(reason));
		}
	}

	/** Closes at once. Idempotent. */
	destroy(reason: Error): void {
		this.#reason ??= reason;
		this.#reader.stop();
		this.#socket.destroy();
		this.#end();
	}

	#onFrames(frames: Iterable<Frame | OversizedFrame>): void {
		for (const frame of frames) {
			if (this.#isOver) {
				return;
			}

			if (frame instanceof Frame) {
				this.#events.frame(frame);
			} else {
				this.#events.oversized(frame);
			}
		}
	}

	readonly #onDrain = (): void => {
		this.#reader.isReading = true;
	};

	readonly #onError = (error: Error): void => {
		this.#reason ??= new AdaptorError({
			code: 'unavailable',
			what: `ttrpc connection failed: ${error.message}`,
			cause: error,
		});
	};

	#onClose(): void {
		this.#reason ??= closedByPeer();
		this.#end();
		this.#socket.off('drain', this.#onDrain).off('error', this.#onError);
		this.#closed.resolve(undefined);
	}

	#end(): void {
		if (!this.#isOver) {
			this.#isOver = true;
			this.#events.closed(this.#reason ?? closedByPeer());
		}
	}
}

function closedByPeer(): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'The ttrpc peer closed the connection'});
}

/**
 * One socket as a sender and receiver of frames: the thin layer of ttrpc that does I/O.
 * Knows no streams, no messages and no roles. Whoever makes it owns what is above; the socket is its own from then on.
 */
import type {Duplex} from 'node:stream';
import {AdaptorError} from '../core/errors.ts';
import {Frame, type OversizedFrame} from './frame.ts';
import {PacedReader} from './paced-reader.ts';

export interface ConnectionEvents {
	frame(frame: Frame): void;
	oversized(frame: OversizedFrame): void;
	/**
	 * Once, and nothing else after it. The peer's end of the stream counts: nobody who asks by ttrpc stops sending and
	 * still listens.
	 */
	closed(reason: Error): void;
}

export interface ConnectionOptions {
	/** Bytes of the largest message that is taken, without its header. */
	readonly maxMessageLength: number;
	/**
	 * Take no more frames while the peer leaves its own unread (more than the socket's high-water mark is waiting to be
	 * written). For servers only: were both ends to do so, each could wait for the other.
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

	/** @param socket may hold bytes that were read and unshifted again, and may be paused */
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

	/** Sends a whole frame, header included. After the end it does nothing. */
	send(frame: Buffer): void {
		if (this.#isOver || this.#socket.writableEnded) {
			return;
		}

		if (!this.#socket.write(frame) && this.#holdReads) {
			this.#reader.isReading = false;
		}
	}

	/**
	 * Closes once everything sent has been handed on. A peer that does not read delays this for ever: destroy it then.
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

/**
 * Sends and receives whole frames on the connection of the shim until it is closed. Either side may end its direction
 * and still receive. Knows no calls.
 */
import type {Socket} from 'node:net';
import {encodeFrame, frameType, type Frame, type OversizedFrame} from '../ttrpc/frame.ts';
import {encodeResponse} from '../ttrpc/message.ts';
import {PacedReader} from '../ttrpc/paced-reader.ts';

export interface ShimLegEvents {
	/** Received frames in order, limited per turn of the event loop. */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** The send buffer has room again. */
	drained(): void;
	/** The shim has ended its direction, but still receives. */
	ended(): void;
	/** Called once, and last. */
	closed(): void;
}

export class ShimLeg {
	readonly #socket: Socket;
	readonly #reader: PacedReader;
	#hasUnreadAnswers = false;
	#hasEnded = false;

	/** @param socket paused, half-open allowed; this leg owns it from now on */
	constructor(socket: Socket, events: ShimLegEvents) {
		this.#socket = socket;
		// A half-open socket may stay open after an error.
		socket.on('error', () => this.destroy());
		socket.on('drain', () => {
			this.#hasUnreadAnswers = false;
			events.drained();
		});
		this.#reader = new PacedReader(socket, {
			frames: frames => events.frames(frames),
			ended: () => {
				this.#hasEnded = true;
				events.ended();
			},
			closed: () => events.closed(),
		});
	}

	/** Whether the shim has ended its direction. */
	get hasEnded(): boolean {
		return this.#hasEnded;
	}

	/** Whether the send buffer is full because the shim does not read. */
	get isFull(): boolean {
		return this.#socket.writableNeedDrain;
	}

	/** Whether the shim does not read the answers of the relay. In that case, no further requests are accepted. */
	get hasUnreadAnswers(): boolean {
		return this.#hasUnreadAnswers;
	}

	/** Total bytes in both directions. */
	get bytes(): number {
		return this.#socket.bytesRead + this.#socket.bytesWritten;
	}

	/** Combines everything that `write` sends into as few writes as possible. */
	together(write: () => void): void {
		this.#socket.cork();
		write();
		this.#socket.uncork();
	}

	/** @param bytes a whole frame */
	send(bytes: Buffer): void {
		this.#socket.write(bytes);
	}

	/** Sends an answer of the relay. */
	respond(streamId: number, code: number, message: string): void {
		const response = encodeResponse({status: {code, message}, payload: Buffer.alloc(0)});
		if (!this.#socket.write(encodeFrame({streamId, type: frameType.response, flags: 0}, response))) {
			this.#hasUnreadAnswers = true;
		}
	}

	/** Pauses or resumes reading from the shim. */
	set isReading(shall: boolean) {
		this.#reader.isReading = shall;
	}

	/** Ends the sending direction. */
	end(): void {
		this.#socket.end();
	}

	/** Closes at once and drops queued frames. Idempotent. */
	destroy(): void {
		this.#reader.stop();
		this.#socket.destroy();
	}
}

/**
 * The shim's connection as a sender and receiver of whole frames, until it is closed. Either side may say no more and
 * still be heard. Knows no calls.
 */
import type {Socket} from 'node:net';
import {encodeFrame, frameType, type Frame, type OversizedFrame} from '../ttrpc/frame.ts';
import {encodeResponse} from '../ttrpc/message.ts';
import {PacedReader} from '../ttrpc/paced-reader.ts';

export interface ShimLegEvents {
	/** In their order, as many as one turn of the event loop allows. */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** There is room again. */
	drained(): void;
	/** The shim says no more, and is told what there is still to be told. */
	ended(): void;
	/** Once, and nothing after it. */
	closed(): void;
}

export class ShimLeg {
	readonly #socket: Socket;
	readonly #reader: PacedReader;
	#hasUnreadAnswers = false;
	#hasEnded = false;

	/** @param socket paused, half-open allowed; this leg's from now on */
	constructor(socket: Socket, events: ShimLegEvents) {
		this.#socket = socket;
		// A half-open socket need not close by itself after an error.
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

	/** Whether the shim says no more. */
	get hasEnded(): boolean {
		return this.#hasEnded;
	}

	/** Whether what was sent waits for the shim to read. */
	get isFull(): boolean {
		return this.#socket.writableNeedDrain;
	}

	/** The shim leaves our own answers unread: no more of its requests are to be taken meanwhile. */
	get hasUnreadAnswers(): boolean {
		return this.#hasUnreadAnswers;
	}

	/** Passed so far, both ways. */
	get bytes(): number {
		return this.#socket.bytesRead + this.#socket.bytesWritten;
	}

	/** What `write` sends goes in as few writes as possible. */
	together(write: () => void): void {
		this.#socket.cork();
		write();
		this.#socket.uncork();
	}

	/** @param bytes a whole frame */
	send(bytes: Buffer): void {
		this.#socket.write(bytes);
	}

	/** An answer of our own. */
	respond(streamId: number, code: number, message: string): void {
		const response = encodeResponse({status: {code, message}, payload: Buffer.alloc(0)});
		if (!this.#socket.write(encodeFrame({streamId, type: frameType.response, flags: 0}, response))) {
			this.#hasUnreadAnswers = true;
		}
	}

	/** Whether more is read from the shim. */
	set isReading(shall: boolean) {
		this.#reader.isReading = shall;
	}

	/** Nothing more will be sent. */
	end(): void {
		this.#socket.end();
	}

	/** Closes at once; frames that wait are dropped. Idempotent. */
	destroy(): void {
		this.#reader.stop();
		this.#socket.destroy();
	}
}

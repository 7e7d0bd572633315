/**
 * The shim's connection as a sender and receiver of whole frames, until it is closed. Either side may say no more and still be heard. Knows no calls.
 */
import type {Socket} from 'node:net';
import {encodeFrame, FrameDecoder, frameType, type Frame, type OversizedFrame} from '../ttrpc/frame.ts';
import {encodeResponse} from '../ttrpc/message.ts';
import {setReading} from './reading.ts';

export interface ShimLegEvents {
	/** Those of one chunk, in their order. */
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
	readonly #decoder = new FrameDecoder();
	#isUnheard = false;

	/** @param socket paused, half-open allowed; this leg's from now on */
	constructor(socket: Socket, events: ShimLegEvents) {
		this.#socket = socket;
		// A half-open socket need not close by itself after an error.
		socket.on('error', () => socket.destroy());
		socket.on('data', (chunk: Buffer) => events.frames(this.#decoder.push(chunk))).once('end', () => events.ended()).once('close', () => events.closed());
		socket.on('drain', () => {
			this.#isUnheard = false;
			events.drained();
		});
		socket.resume();
	}

	/** Whether the shim says no more. */
	get hasEnded(): boolean {
		return this.#socket.readableEnded;
	}

	/** Whether what was sent waits for the shim to read. */
	get isFull(): boolean {
		return this.#socket.writableNeedDrain;
	}

	/** The shim leaves our own answers unread: no more of its requests are to be taken meanwhile. */
	get isUnheard(): boolean {
		return this.#isUnheard;
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
			this.#isUnheard = true;
		}
	}

	/** Whether more is read from the shim. */
	set isReading(shall: boolean) {
		setReading(this.#socket, shall);
	}

	/** Nothing more will be sent. */
	end(): void {
		this.#socket.end();
	}

	destroy(): void {
		this.#socket.destroy();
	}
}

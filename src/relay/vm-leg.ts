/**
 * One connection to the VM as a sender and receiver of whole frames, from when it is proven until it is lost. Unlike a client's connection it
 * can be ended and still be heard, and waits when its frames find no room. Knows no calls.
 */
import type {TLSSocket} from 'node:tls';
import {AdaptorError} from '../errors.ts';
import {FrameDecoder, type Frame, type OversizedFrame} from '../ttrpc/frame.ts';
import {setReading} from './reading.ts';

export interface VmLegEvents {
	/** Those of one chunk, in their order; none when no frame ends in it. */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** There is room again. */
	drained(): void;
	/** Once, and nothing after it. The VM's end counts: who serves ttrpc and says no more takes no more either. */
	lost(reason: Error): void;
}

export class VmLeg {
	readonly #socket: TLSSocket;
	readonly #events: VmLegEvents;
	readonly #decoder = new FrameDecoder();
	readonly #closed = Promise.withResolvers<undefined>();
	#isOver = false;
	#unheardBytes = 0;

	constructor(socket: TLSSocket, events: VmLegEvents) {
		this.#socket = socket;
		this.#events = events;
		socket.on('data', this.#onData).on('drain', this.#onDrain).on('error', this.#onError).once('end', this.#onEnd).once('close', this.#onClose);
		socket.resume();
		// It may have ended, unheard, since it was proven.
		if (socket.closed) {
			queueMicrotask(this.#onClose);
		} else if (socket.readableEnded) {
			queueMicrotask(this.#onEnd);
		}
	}

	/** Resolves when the socket is closed. */
	get closed(): Promise<undefined> {
		return this.#closed.promise;
	}

	/** Whether what was sent waits for the VM to read. */
	get isFull(): boolean {
		return this.#socket.writableNeedDrain;
	}

	/** Sent since anything was received. */
	get unheardBytes(): number {
		return this.#unheardBytes;
	}

	/** Sends these bytes, whole frames, in as few writes as possible. */
	send(frames: Iterable<Buffer>): void {
		this.#socket.cork();
		for (const bytes of frames) {
			this.#unheardBytes += bytes.length;
			this.#socket.write(bytes);
		}

		this.#socket.uncork();
	}

	/** Nothing more will be sent; the VM is heard until it ends too. */
	end(): void {
		this.#socket.end();
	}

	/** Whether more is read from the VM. */
	set isReading(shall: boolean) {
		setReading(this.#socket, shall);
	}

	/** Closes at once, without `lost`. Idempotent. */
	destroy(): void {
		this.#isOver = true;
		this.#socket.destroy();
	}

	readonly #onData = (chunk: Buffer): void => {
		if (!this.#isOver) {
			this.#unheardBytes = 0;
			this.#events.frames(this.#decoder.push(chunk));
		}
	};

	readonly #onDrain = (): void => {
		if (!this.#isOver) {
			this.#events.drained();
		}
	};

	readonly #onEnd = (): void => this.#lose(closedByVm());

	/** Stays for good. Not every error closes a half-open TLS socket. */
	readonly #onError = (error: Error): void => this.#lose(error);

	readonly #onClose = (): void => {
		this.#lose(closedByVm());
		this.#closed.resolve(undefined);
	};

	#lose(reason: Error): void {
		if (!this.#isOver) {
			this.destroy();
			this.#events.lost(reason);
		}
	}
}

function closedByVm(): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'closed by the VM'});
}

/**
 * One connection to the VM as a sender and receiver of whole frames, from when it is proven until it is lost. Unlike a
 * client's connection it can be ended and still be heard, and waits when its frames find no room. Knows no calls.
 */
import type {TLSSocket} from 'node:tls';
import {AdaptorError} from '../core/errors.ts';
import type {Frame, OversizedFrame} from '../ttrpc/frame.ts';
import {PacedReader} from '../ttrpc/paced-reader.ts';

export interface VmLegEvents {
	/** In their order, as many as one turn of the event loop allows; none when no frame ends in what arrived. */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** There is room again. */
	drained(): void;
	/** Once, and nothing after it. The VM's end counts: who serves ttrpc and says no more takes no more either. */
	lost(reason: Error): void;
}

export class VmLeg {
	readonly #socket: TLSSocket;
	readonly #events: VmLegEvents;
	readonly #reader: PacedReader;
	readonly #closed = Promise.withResolvers<undefined>();
	#isOver = false;
	#unacknowledgedBytes = 0;

	constructor(socket: TLSSocket, events: VmLegEvents) {
		this.#socket = socket;
		this.#events = events;
		socket.on('drain', this.#onDrain).on('error', this.#onError);
		this.#reader = new PacedReader(socket, {
			frames: frames => {
				this.#unacknowledgedBytes = 0;
				events.frames(frames);
			},
			ended: () => this.#lose(closedByVm()),
			closed: () => {
				this.#lose(closedByVm());
				this.#closed.resolve(undefined);
			},
		});
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
	get unacknowledgedBytes(): number {
		return this.#unacknowledgedBytes;
	}

	/** Sends these bytes, whole frames, in as few writes as possible. */
	send(frames: Iterable<Buffer>): void {
		this.#socket.cork();
		for (const bytes of frames) {
			this.#unacknowledgedBytes += bytes.length;
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
		this.#reader.isReading = shall;
	}

	/** Closes at once, without `lost`; frames that wait are dropped. Idempotent. */
	destroy(): void {
		this.#isOver = true;
		this.#reader.stop();
		this.#socket.destroy();
	}

	readonly #onDrain = (): void => {
		if (!this.#isOver) {
			this.#events.drained();
		}
	};

	/** Stays for good. Not every error closes a half-open TLS socket. */
	readonly #onError = (error: Error): void => this.#lose(error);

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

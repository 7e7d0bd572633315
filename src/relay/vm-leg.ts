/**
 * Sends and receives whole frames on a verified connection to the VM until it is lost. Unlike the connection of a ttrpc
 * client, it can end its sending direction and still receive, and it applies back pressure. Knows no calls.
 */
import type {Duplex} from 'node:stream';
import {AdaptorError} from '../core/errors.ts';
import type {Frame, OversizedFrame} from '../ttrpc/frame.ts';
import {PacedReader} from '../ttrpc/paced-reader.ts';

export interface VmLegEvents {
	/** Received frames in order, limited per turn of the event loop; none if no frame is complete yet. */
	frames(frames: Iterable<Frame | OversizedFrame>): void;
	/** The send buffer has room again. */
	drained(): void;
	/**
	 * Called once, and last. Also called when the VM ends its direction: a ttrpc server then reads no further requests.
	 */
	lost(reason: Error): void;
}

export class VmLeg {
	readonly #socket: Duplex;
	readonly #events: VmLegEvents;
	readonly #reader: PacedReader;
	readonly #closed = Promise.withResolvers<undefined>();
	#isOver = false;
	#unacknowledgedBytes = 0;

	constructor(socket: Duplex, events: VmLegEvents) {
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

	/** Whether the send buffer is full because the VM does not read. */
	get isFull(): boolean {
		return this.#socket.writableNeedDrain;
	}

	/** Bytes sent since the last received data. */
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

	/** Ends the sending direction; receives until the VM ends its direction. */
	end(): void {
		this.#socket.end();
	}

	/** Pauses or resumes reading from the VM. */
	set isReading(shall: boolean) {
		this.#reader.isReading = shall;
	}

	/** Closes at once without calling `lost`, and drops queued frames. Idempotent. */
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

	/** Never removed: not every error closes a half-open TLS socket. */
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

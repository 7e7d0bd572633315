/**
 * The calls of one connection to a server: admits requests, runs handlers, answers each once. Reads and writes through
 * `Connection`; does not know the listener or other connections.
 */
import type {Duplex} from 'node:stream';
import {AdaptorError, codeOf, echoed, toError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import {Connection} from './connection.ts';
import {encodeFrame, frameFlag, frameType, type Frame, type FrameHeader} from './frame.ts';
import {decodeRequest, encodeResponse, type KeyValue, type Request, type Response} from './message.ts';
import type {Route} from './service.ts';
import {statusCode, TtrpcError, type Status} from './status.ts';
import {Violations, type Violation} from './violations.ts';

/** The parts of the server that each connection uses. */
export interface Serving {
	readonly route: (service: string, method: string) => Route | undefined;
	readonly toStatus: (error: unknown) => Status | undefined;
	readonly maxMessageLength: number;
	readonly maxStreams: number;
	/** Called with the reason when a connection ends because its client violated the protocol too often. */
	readonly onBroken: (reason: Error) => void;
}

const noBytes = Buffer.alloc(0);

const untold: Status = {code: statusCode.unknown, message: 'The call failed; see the log of the server'};

export class ServerConnection {
	readonly #serving: Serving;
	readonly #connection: Connection;
	/** By stream id: calls whose handler has not settled. They may have been answered at their deadline. */
	readonly #calls = new Map<number, Scope>();
	readonly #violations = new Violations();
	#isDraining = false;

	constructor(socket: Duplex, serving: Serving) {
		this.#serving = serving;
		this.#connection = new Connection(
			socket,
			{
				frame: frame => this.#onFrame(frame),
				oversized: ({streamId, type, messageLength}) => {
					if (type === frameType.request) {
						this.#refuse(
							streamId,
							statusCode.resourceExhausted,
							`A request of ${messageLength} bytes exceeds the limit of ${serving.maxMessageLength}`,
						);
					} else {
						this.#onViolation('a message over the limit');
					}
				},
				closed: reason => this.#abortAll(reason),
			},
			{maxMessageLength: serving.maxMessageLength, holdReads: true},
		);
	}

	/** Resolves when the socket is closed. */
	get closed(): Promise<unknown> {
		return this.#connection.closed;
	}

	/** Resolves when the running calls have ended, their answers are sent and the socket is closed. */
	async drain(): Promise<void> {
		this.#isDraining = true;
		this.#finishIfDrained();
		await this.closed;
	}

	/** Resolves when the socket is closed. */
	async close(): Promise<void> {
		this.#connection.destroy(new AdaptorError({code: 'unavailable', what: 'The ttrpc server was closed'}));
		await this.closed;
	}

	/** Data is ignored, because its stream was refused. */
	#onFrame(frame: Frame): void {
		switch (frame.type) {
			case frameType.request:
				if (this.#mayStart(frame)) {
					this.#start(frame);
				}

				return;
			case frameType.data:
				return;
			case frameType.response:
				this.#onViolation('a response from the client side');
				return;
			default:
				this.#onViolation('a frame of a reserved type');
		}
	}

	#onViolation(violation: Violation): void {
		const reason = this.#violations.add(violation);
		if (reason !== undefined) {
			this.#serving.onBroken(reason);
			this.#connection.destroy(reason);
		}
	}

	/** Answers requests that may not start. */
	#mayStart({streamId, flags}: FrameHeader): boolean {
		if (streamId % 2 === 0) {
			this.#refuse(streamId, statusCode.invalidArgument, "A client's stream id must be odd");
		} else if (this.#calls.has(streamId)) {
			// Stream ids need not increase, because ttrpc-rust may send them in another order than it assigned them. A
			// running call with the same id continues.
			this.#refuse(streamId, statusCode.invalidArgument, `A call is running on stream ${streamId}`);
		} else if ((flags & frameFlag.remoteOpen) !== 0) {
			this.#refuse(streamId, statusCode.unimplemented, 'Streaming requests are not supported');
		} else if (this.#isDraining) {
			this.#refuse(streamId, statusCode.unavailable, 'The server is shutting down');
		} else if (this.#calls.size >= this.#serving.maxStreams) {
			this.#refuse(
				streamId,
				statusCode.resourceExhausted,
				`${this.#serving.maxStreams} calls are running on this connection`,
			);
		} else {
			return true;
		}

		return false;
	}

	#start({streamId, message}: Frame): void {
		let request: Request;
		try {
			request = decodeRequest(message);
		} catch (error) {
			this.#refuse(streamId, statusCode.invalidArgument, toError(error).message);
			return;
		}

		const {service, method, timeoutNano} = request;
		const route = this.#serving.route(service, method);
		if (route === undefined) {
			this.#refuse(
				streamId,
				statusCode.unimplemented,
				`Unknown service or method: ${echoed(`/${service}/${method}`)}`,
			);
			return;
		}

		if (timeoutNano < 0n) {
			this.#refuse(
				streamId,
				statusCode.deadlineExceeded,
				`The deadline of ${route.definition.path} had passed before it was received`,
			);
			return;
		}

		const scope = new Scope();
		if (timeoutNano > 0n) {
			scope.deadline(Math.ceil(Number(timeoutNano) / 1e6), route.definition.path);
		}

		this.#calls.set(streamId, scope);
		void this.#run(streamId, route, request, scope);
	}

	/** Never rejects. */
	async #run(streamId: number, route: Route, request: Request, scope: Scope): Promise<void> {
		const handled = this.#handle(route, request, scope.signal);
		try {
			this.#answer(streamId, {payload: await abortable(handled, scope.signal)});
		} catch (error) {
			this.#answer(streamId, {
				status: scope.signal.aborted ? statusOfAbort(scope.signal) : this.#statusOf(error),
				payload: noBytes,
			});
			// A handler that runs after its deadline still counts for the limit of calls and for draining.
			await handled.catch(() => undefined);
		}

		scope[Symbol.dispose]();
		this.#calls.delete(streamId);
		this.#finishIfDrained();
	}

	async #handle(
		{definition, handler}: Route,
		{service, method, payload, timeoutNano, metadata}: Request,
		signal: AbortSignal,
	): Promise<Buffer> {
		let value: object;
		try {
			value = definition.requestDeserialize(payload);
		} catch (error) {
			throw new TtrpcError(
				{
					code: statusCode.invalidArgument,
					message: `Malformed request of ${definition.path}: ${toError(error).message}`,
				},
				error,
			);
		}

		// The value was decoded by the definition that this handler was registered with.
		return definition.responseSerialize(
			await handler(value as never, {
				signal,
				service,
				method,
				timeoutMs: timeoutNano > 0n ? Number(timeoutNano) / 1e6 : undefined,
				metadata: byKey(metadata),
			}),
		);
	}

	#statusOf(error: unknown): Status {
		try {
			const status = this.#serving.toStatus(error) ?? (error instanceof TtrpcError ? error.status : untold);
			return status.code === statusCode.ok ? untold : status;
		} catch {
			return untold;
		}
	}

	#refuse(streamId: number, code: number, message: string): void {
		this.#answer(streamId, {status: {code, message}, payload: noBytes});
	}

	#answer(streamId: number, response: Response): void {
		const message = encodeResponse(response);
		if (message.length > this.#serving.maxMessageLength) {
			this.#refuse(
				streamId,
				statusCode.resourceExhausted,
				`A response of ${message.length} bytes exceeds the limit of ${this.#serving.maxMessageLength}`,
			);
			return;
		}

		this.#connection.send(encodeFrame({streamId, type: frameType.response, flags: 0}, message));
	}

	#abortAll(reason: Error): void {
		for (const scope of this.#calls.values()) {
			scope.abort(new AdaptorError({code: 'cancelled', what: 'The ttrpc call was abandoned', cause: reason}));
		}
	}

	#finishIfDrained(): void {
		if (this.#isDraining && this.#calls.size === 0) {
			this.#connection.finish(new AdaptorError({code: 'unavailable', what: 'The ttrpc server was drained'}));
		}
	}
}

function statusOfAbort({reason}: AbortSignal): Status {
	return {
		code: codeOf(reason) === 'deadline-exceeded' ? statusCode.deadlineExceeded : statusCode.cancelled,
		message: toError(reason).message,
	};
}

function byKey(metadata: readonly KeyValue[]): Map<string, readonly string[]> {
	return new Map(
		[...Map.groupBy(metadata, ({key}) => key)].map(([key, pairs]) => [key, pairs.map(({value}) => value)]),
	);
}

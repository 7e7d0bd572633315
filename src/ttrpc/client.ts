/**
 * Concurrent unary calls over one connection. Never reconnects: the owner decides what a lost connection means. ttrpc
 * has no frame that cancels a call: after an abort here, the call continues at the server until its deadline.
 */
import {once} from 'node:events';
import {createConnection} from 'node:net';
import type {Duplex} from 'node:stream';
import {AdaptorError, toError} from '../core/errors.ts';
import {abortable, DeadlineError, Scope} from '../core/lifetime.ts';
import {Connection} from './connection.ts';
import {encodeFrame, frameType, maxMessageLength, type Frame} from './frame.ts';
import {decodeResponse, encodeRequest} from './message.ts';
import {statusCode, TtrpcError} from './status.ts';

/** Compatible with the definitions of @grpc/proto-loader. */
export interface ClientMethod<Request, Response> {
	/** `/package.Service/Method`. */
	readonly path: string;
	readonly requestSerialize: (value: Request) => Buffer;
	readonly responseDeserialize: (bytes: Buffer) => Response;
}

export interface CallOptions {
	/** Sent to the server as timeout_nano, and ends the call here. None by default. */
	readonly timeoutMs?: number;
	readonly metadata?: Readonly<Record<string, string | readonly string[]>>;
}

export interface ClientOptions {
	/**
	 * Maximum bytes of a message in both directions, without the header of the frame. Default 4 MiB, the limit of the
	 * protocol.
	 */
	readonly maxMessageLength?: number;
	/** How long disposing waits for running calls before it closes. Default 10 s. */
	readonly disposeMs?: number;
}

interface Waiting {
	readonly path: string;
	readonly resolve: (payload: Buffer) => void;
	readonly reject: (error: Error) => void;
}

const lastStreamId = 0xff_ff_ff_ff;

export class TtrpcClient implements AsyncDisposable {
	readonly #connection: Connection;
	readonly #maxMessageLength: number;
	readonly #disposeMs: number;
	/** By stream id. An aborted call is removed, so a late response is ignored. */
	readonly #waiting = new Map<number, Waiting>();
	#nextStreamId = 1;
	/** Why no more calls are accepted; the first cause wins. */
	#ended: Error | undefined;

	/** @param socket connected or connecting; closed by this client */
	constructor(socket: Duplex, options: ClientOptions = {}) {
		this.#maxMessageLength = options.maxMessageLength ?? maxMessageLength;
		this.#disposeMs = options.disposeMs ?? 10_000;
		this.#connection = new Connection(
			socket,
			{
				frame: frame => this.#onFrame(frame),
				oversized: ({streamId, messageLength}) =>
					this.#waiting.get(streamId)?.reject(
						new TtrpcError({
							code: statusCode.resourceExhausted,
							message: `A response of ${messageLength} bytes exceeds the limit of ${this.#maxMessageLength}`,
						}),
					),
				closed: reason => this.#onClosed(reason),
			},
			{maxMessageLength: this.#maxMessageLength, holdReads: false},
		);
	}

	/** Resolves when the connection is closed by either side. */
	get closed(): Promise<unknown> {
		return this.#connection.closed;
	}

	/**
	 * @throws TtrpcError with the server's status; 'unavailable' when the connection is lost or closed;
	 * 'deadline-exceeded'; 'resource-exhausted' for a message over the limit; the signal's reason
	 */
	async call<Request, Response>(
		method: ClientMethod<Request, Response>,
		request: Request,
		options: CallOptions,
		signal: AbortSignal,
	): Promise<Response> {
		signal.throwIfAborted();
		const {path} = method;
		const {timeoutMs} = options;
		if (this.#ended !== undefined) {
			throw unavailable(path, this.#ended);
		}

		// On the wire, 0 would be no deadline.
		if (timeoutMs !== undefined && timeoutMs <= 0) {
			throw new DeadlineError(path, timeoutMs);
		}

		const streamId = this.#nextStreamId;
		const frame = this.#requestFrame(streamId, path, method.requestSerialize(request), options);
		this.#nextStreamId += 2;
		const {promise, resolve, reject} = Promise.withResolvers<Buffer>();
		this.#waiting.set(streamId, {path, resolve, reject});
		using scope = new Scope(signal);
		if (timeoutMs !== undefined) {
			scope.deadline(timeoutMs, path);
		}

		let payload: Buffer;
		try {
			this.#connection.send(frame);
			payload = await abortable(promise, scope.signal);
		} finally {
			this.#waiting.delete(streamId);
			this.#finishIfDrained();
		}

		try {
			return method.responseDeserialize(payload);
		} catch (error) {
			throw malformed(path, error);
		}
	}

	/** Refuses new calls, waits for running ones, then ends the connection; if the signal aborts, closes it. */
	async drain(signal: AbortSignal): Promise<void> {
		this.#ended ??= new AdaptorError({code: 'unavailable', what: 'The ttrpc client was drained'});
		this.#finishIfDrained();
		try {
			await abortable(this.closed, signal);
		} catch {
			await this.close();
		}
	}

	/** Fails the running calls and ends the connection, at once. */
	async close(): Promise<void> {
		this.#connection.destroy(new AdaptorError({code: 'unavailable', what: 'The ttrpc client was closed'}));
		await this.closed;
	}

	/** Drains, with its own time limit. */
	async [Symbol.asyncDispose](): Promise<void> {
		using scope = new Scope().deadline(this.#disposeMs, 'running ttrpc calls');
		await this.drain(scope.signal);
	}

	#requestFrame(
		streamId: number,
		path: string,
		payload: Buffer,
		{timeoutMs = 0, metadata = {}}: CallOptions,
	): Buffer {
		if (streamId > lastStreamId) {
			throw new AdaptorError({
				code: 'unavailable',
				what: 'All stream ids of this ttrpc connection are used',
				remedy: 'Open a new connection.',
			});
		}

		const [, service = '', name = ''] = path.split('/');
		const message = encodeRequest({
			service,
			method: name,
			payload,
			timeoutNano: BigInt(Math.ceil(timeoutMs * 1e6)),
			metadata: Object.entries(metadata).flatMap(([key, values]) => [values].flat().map(value => ({key, value}))),
		});
		if (message.length > this.#maxMessageLength) {
			throw new AdaptorError({
				code: 'resource-exhausted',
				what: `A request of ${message.length} bytes exceeds the limit of ${this.#maxMessageLength}`,
				where: {method: path},
			});
		}

		return encodeFrame({streamId, type: frameType.request, flags: 0}, message);
	}

	#onFrame({streamId, type, message}: Frame): void {
		const waiting = this.#waiting.get(streamId);
		if (waiting === undefined) {
			return;
		}

		if (type === frameType.response) {
			try {
				const {status, payload} = decodeResponse(message);
				if (status === undefined || status.code === statusCode.ok) {
					waiting.resolve(payload);
				} else {
					waiting.reject(new TtrpcError(status));
				}
			} catch (error) {
				waiting.reject(malformed(waiting.path, error));
			}
		} else if (type === frameType.data) {
			waiting.reject(
				malformed(waiting.path, new TypeError('data on a stream that must have exactly one response')),
			);
		}
	}

	#onClosed(reason: Error): void {
		this.#ended ??= reason;
		for (const {path, reject} of this.#waiting.values()) {
			reject(unavailable(path, reason));
		}
	}

	#finishIfDrained(): void {
		if (this.#ended !== undefined && this.#waiting.size === 0) {
			this.#connection.finish(this.#ended);
		}
	}
}

/**
 * A client on the unix socket at `path`.
 * @throws 'unavailable' when nobody listens there; the signal's reason
 */
export async function connect(path: string, signal: AbortSignal, options: ClientOptions = {}): Promise<TtrpcClient> {
	signal.throwIfAborted();
	const socket = createConnection(path);
	try {
		await once(socket, 'connect', {signal});
	} catch (error) {
		socket.destroy();
		signal.throwIfAborted();
		throw new AdaptorError({
			code: 'unavailable',
			what: `Could not connect to the ttrpc server: ${toError(error).message}`,
			where: {path},
			cause: error,
		});
	}

	return new TtrpcClient(socket, options);
}

function unavailable(path: string, reason: Error): AdaptorError {
	return new AdaptorError({
		code: 'unavailable',
		what: `The ttrpc call was not answered: ${reason.message}`,
		where: {method: path},
		cause: reason,
	});
}

function malformed(path: string, cause: unknown): AdaptorError {
	return new AdaptorError({
		code: 'internal',
		what: `The answer to a ttrpc call is malformed: ${toError(cause).message}`,
		where: {method: path},
		cause,
	});
}

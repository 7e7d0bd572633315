/**
 * Serves unary calls on sockets that others accepted. One stream is one call (containerd/ttrpc, PROTOCOL.md, "Unary
 * State Diagram"). Does not know the listener. Errors are converted only by the `toStatus` of the caller.
 *
 *   open ── drain() ──▶ draining: new calls are UNAVAILABLE, a connection ends with its last running call ──▶ closed
 *   open, draining ── close() ──▶ closed: running calls are aborted, connections end at once
 */
import type {Duplex} from 'node:stream';
import {AdaptorError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import {maxMessageLength} from './frame.ts';
import {ServerConnection, type Serving} from './server-connection.ts';
import type {CallContext, MethodDefinition, Route, Service} from './service.ts';
import type {Status} from './status.ts';

export interface ServerOptions {
	/** The status for an error of a handler. Undefined for an unknown error: the peer gets UNKNOWN without details. */
	readonly toStatus: (error: unknown) => Status | undefined;
	/** Answers methods that are not registered, with the bytes of their messages. Without it they are UNIMPLEMENTED. */
	readonly otherwise?: (request: Buffer, context: CallContext) => Promise<Buffer>;
	/**
	 * Maximum bytes of a message in both directions, without the header of the frame. Default 4 MiB, the limit of the
	 * protocol.
	 */
	readonly maxMessageLength?: number;
	/** Maximum number of running calls per connection; more are RESOURCE_EXHAUSTED. Default 1024. */
	readonly maxStreams?: number;
	/** Called with the reason when a connection ends because its client violated the protocol too often. */
	readonly onBroken?: (reason: Error) => void;
	/** How long disposing waits for running calls before it closes. Default 10 s. */
	readonly disposeMs?: number;
}

export class TtrpcServer implements AsyncDisposable {
	readonly #routes = new Map<string, Route>();
	readonly #connections = new Set<ServerConnection>();
	readonly #serving: Serving;
	readonly #disposeMs: number;
	#isOpen = true;

	constructor({
		toStatus,
		maxStreams = 1024,
		disposeMs = 10_000,
		onBroken = () => undefined,
		otherwise,
		...limits
	}: ServerOptions) {
		this.#disposeMs = disposeMs;
		this.#serving = {
			route: (service, method) => {
				const path = `/${service}/${method}`;
				return this.#routes.get(path) ?? (otherwise && {definition: rawMethod(path), handler: otherwise});
			},
			toStatus,
			maxStreams,
			onBroken,
			maxMessageLength: limits.maxMessageLength ?? maxMessageLength,
		};
	}

	/** @throws 'already-exists' if one of its methods is registered */
	register({definition, handlers}: Service): void {
		for (const [name, method] of Object.entries(definition)) {
			const handler = Object.hasOwn(handlers, name) ? handlers[name] : undefined;
			if (handler === undefined || method.requestStream === true || method.responseStream === true) {
				continue;
			}

			if (this.#routes.has(method.path)) {
				throw new AdaptorError({
					code: 'already-exists',
					what: 'This ttrpc method is registered already',
					where: {method: method.path},
				});
			}

			this.#routes.set(method.path, {definition: method, handler});
		}
	}

	/**
	 * Takes over an accepted socket, which may contain unshifted bytes. After drain or close, the socket is destroyed.
	 */
	serve(socket: Duplex): void {
		if (!this.#isOpen) {
			socket.destroy();
			return;
		}

		const connection = new ServerConnection(socket, this.#serving);
		this.#connections.add(connection);
		void connection.closed.then(() => this.#connections.delete(connection));
	}

	/** Refuses new calls, waits for running ones, then ends the connections; if the signal aborts, closes instead. */
	async drain(signal: AbortSignal): Promise<void> {
		this.#isOpen = false;
		try {
			await abortable(Promise.all([...this.#connections].map(async connection => connection.drain())), signal);
		} catch {
			await this.close();
		}
	}

	/** Aborts running calls without an answer, and ends every connection. Does not wait for handlers. */
	async close(): Promise<void> {
		this.#isOpen = false;
		await Promise.all([...this.#connections].map(async connection => connection.close()));
	}

	/** Drains, with its own time limit. */
	async [Symbol.asyncDispose](): Promise<void> {
		using scope = new Scope().deadline(this.#disposeMs, 'running ttrpc calls');
		await this.drain(scope.signal);
	}
}

/** Passes the bytes of the messages on. */
function rawMethod(path: string): MethodDefinition {
	return {path, requestDeserialize: bytes => bytes, responseSerialize: value => value as Buffer};
}

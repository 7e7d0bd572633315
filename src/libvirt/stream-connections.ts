/**
 * Connections for one stream each, without events and keepalive, so that a slow reader may stop them. Their number is
 * limited.
 */
import {Semaphore} from '../core/concurrency/semaphore.ts';
import {AdaptorError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {rootReason, type Connector} from './connector.ts';
import {LibvirtConnectionError} from './wire/errors.ts';
import type {RpcConnection} from './rpc.ts';

const connectionsAtOnce = 4;

export class StreamConnections {
	readonly #connector: Connector;
	readonly #timeoutMs: number;
	readonly #slots = new Semaphore(connectionsAtOnce);
	readonly #open = new Set<RpcConnection>();

	/** @param timeoutMs covers the wait for a permit and for the connection */
	constructor(connector: Connector, timeoutMs: number) {
		this.#connector = connector;
		this.#timeoutMs = timeoutMs;
	}

	/** Disposing the result closes the connection and releases the permit. */
	async open(
		procedure: string,
		...ends: readonly AbortSignal[]
	): Promise<Disposable & {readonly connection: RpcConnection}> {
		using scope = new Scope(...ends).deadline(this.#timeoutMs, `a connection to libvirt for ${procedure}`);
		const slot = await this.#slots.acquire(scope.signal);
		try {
			const connection = await this.#connector.open(
				{onLost: () => undefined, onMessage: () => undefined},
				scope.signal,
			);
			this.#open.add(connection);
			return {
				connection,
				[Symbol.dispose]: () => {
					connection.close(new AdaptorError({code: 'cancelled', what: 'the stream is over'}));
					this.#open.delete(connection);
					slot[Symbol.dispose]();
				},
			};
		} catch (error) {
			slot[Symbol.dispose]();
			throw scope.signal.aborted
				? error
				: new LibvirtConnectionError(procedure, false, undefined, rootReason(error));
		}
	}

	close(reason: AdaptorError): void {
		for (const connection of this.#open) {
			connection.close(reason);
		}
	}
}

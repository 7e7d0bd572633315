/**
 * Makes connections to one daemon: opens the pipe, authenticates and opens the driver. For long-lived connections, also
 * turns on events and keepalive. Does not know when a connection is needed or how it is used.
 */
import {AdaptorError, toError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {LibvirtConnectionError} from './wire/errors.ts';
import {openDriver, prepareDriver} from './handshake.ts';
import {hedged} from '../core/concurrency/hedged.ts';
import {RpcConnection, type RpcOptions} from './rpc.ts';
import type {ServerInfo} from './session-events.ts';
import type {LibvirtSessionOptions} from './session-options.ts';

/** An attempt that began before the host failed may hang in its handshake. A handshake takes a third of a second. */
const hedging = {everyMs: 1500, atMost: 2};

export type ConnectionEvents = Pick<RpcOptions, 'onLost' | 'onMessage'>;

export interface PreparedConnection {
	readonly connection: RpcConnection;
	readonly server: ServerInfo;
	/** Whether the daemon answers pings. */
	readonly keepalive: boolean;
}

export class Connector {
	readonly #options: Required<LibvirtSessionOptions>;

	constructor(options: Required<LibvirtSessionOptions>) {
		this.#options = options;
	}

	/** Opens a connection and its driver, for a stream. */
	async open(events: ConnectionEvents, signal: AbortSignal): Promise<RpcConnection> {
		const pipe = await this.#options.openPipe(signal);
		const connection = new RpcConnection(pipe, {
			...events,
			onIgnored: ({serial, procedure}) => {
				const {observer, uri} = this.#options;
				observer.notify({kind: 'libvirt-packet-ignored', serial, procedure, uri});
			},
		});
		try {
			await openDriver(connection, this.#options.uri, signal);
			return connection;
		} catch (error) {
			connection.close(rootReason(error));
			throw error;
		}
	}

	/** Opens a long-lived connection with lifecycle events. Fails after `connectTimeoutMs`. */
	async openPrepared(events: ConnectionEvents, signal: AbortSignal): Promise<PreparedConnection> {
		using scope = new Scope(signal).deadline(
			this.#options.connectTimeoutMs,
			"libvirt's answers to a new connection",
		);
		return await hedged(
			async attempt => this.#openPrepared(events, attempt),
			{
				...hedging,
				discard: ({connection}) =>
					connection.close(new AdaptorError({code: 'cancelled', what: 'another connection succeeded first'})),
			},
			scope.signal,
		);
	}

	async #openPrepared(events: ConnectionEvents, signal: AbortSignal): Promise<PreparedConnection> {
		const connection = await this.open(events, signal);
		try {
			const {keepalive, ...about} = await prepareDriver(connection, signal);
			return {connection, keepalive, server: {...about, transport: connection.transport}};
		} catch (error) {
			connection.close(rootReason(error));
			throw error;
		}
	}
}

/** The root cause of a failed handshake, as text that can follow a colon. */
export function rootReason(thrown: unknown): AdaptorError {
	const reason =
		thrown instanceof LibvirtConnectionError && thrown.cause instanceof AdaptorError ? thrown.cause : thrown;
	return reason instanceof AdaptorError
		? reason
		: new AdaptorError({code: 'unavailable', what: toError(reason).message, cause: reason});
}

/**
 * Serves hypervisor.sock on behalf of the registered daemon, and keeps the connections of the callers when that daemon
 * ends. Each connection of a caller has a separate connection to the daemon, so a caller that hangs up also ends its
 * calls at the daemon. Passes messages on without reading them. Source of the API: proto/hypervisor.proto,
 * proto/podvminfo.proto.
 */
import {once} from 'node:events';
import {createConnection, type Socket} from 'node:net';
import {AdaptorError, toError} from '../core/errors.ts';
import {neverAborts, pause, Scope} from '../core/lifetime.ts';
import type {Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import {connect, type ClientMethod, type TtrpcClient} from '../ttrpc/client.ts';
import {onProtocol} from '../ttrpc/protocol.ts';
import {TtrpcServer} from '../ttrpc/server.ts';
import type {CallContext} from '../ttrpc/service.ts';
import {toStatus, TtrpcError} from '../ttrpc/status.ts';
import type {RelayProcessEvent} from './events.ts';
import type {RegisteredDaemon, RegisteredDaemons} from './registered-daemons.ts';

export interface HypervisorFrontOptions {
	readonly daemons: RegisteredDaemons;
	readonly observer: Observer<RelayProcessEvent>;
	/** How long a call without a deadline waits for a daemon. Default 120 s. */
	readonly waitMs?: number;
}

/**
 * A daemon starts within seconds, or within one or two minutes if its image must be pulled. The time-out of kata is
 * longer.
 */
const defaultWaitMs = 120_000;
/**
 * Pause before the next attempt. A killed daemon stays registered until this process notices that its connection has
 * ended.
 */
const reconnectPauseMs = 20;

/** Replayable calls: making them twice has the same result. */
const repeatable: ReadonlySet<string> = new Set([
	'/hypervisor.Hypervisor/StopVM',
	'/hypervisor.Hypervisor/Version',
	'/podvminfo.PodVMInfo/GetInfo',
]);

export class HypervisorFront implements AsyncDisposable {
	readonly #options: HypervisorFrontOptions;
	readonly #waitMs: number;
	readonly #ending = new AbortController();
	readonly #servers = new Set<TtrpcServer>();
	readonly #sockets = new Set<Socket>();
	/** Connections that are passed on as bytes. */
	readonly #piped = new Set<Socket>();

	constructor(options: HypervisorFrontOptions) {
		this.#options = options;
		this.#waitMs = options.waitMs ?? defaultWaitMs;
	}

	/** Number of callers that are connected. */
	get callers(): number {
		return this.#sockets.size;
	}

	/** Takes over the connection of a caller. */
	accept(socket: Socket): void {
		this.#sockets.add(socket);
		socket.once('close', () => this.#sockets.delete(socket));
		onProtocol(socket, protocol => {
			if (protocol === 'ttrpc') {
				this.#serve(socket);
			} else {
				void this.#pipe(socket);
			}
		});
	}

	/** Ends the connections of gRPC clients, which reconnect by themselves. */
	endUnbound(): void {
		for (const socket of this.#piped) {
			socket.destroy();
		}
	}

	/** Answers running calls as UNAVAILABLE, and ends all connections. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#ending.abort(new AdaptorError({code: 'unavailable', what: 'The relay process is stopping'}));
		await Promise.all([...this.#servers].map(async server => server.close()));
		for (const socket of this.#sockets) {
			socket.destroy();
		}
	}

	#serve(socket: Socket): void {
		const clients = new DaemonClients();
		const server = new TtrpcServer({
			toStatus,
			otherwise: async (request, context) => this.#forward(clients, request, context),
		});
		this.#servers.add(server);
		socket.once('close', () => {
			this.#servers.delete(server);
			void clients[Symbol.asyncDispose]();
		});
		server.serve(socket);
	}

	async #forward(clients: DaemonClients, request: Buffer, context: CallContext): Promise<Buffer> {
		const {service, method, timeoutMs, metadata} = context;
		const path = `/${service}/${method}`;
		const startedAt = performance.now();
		let lost: RegisteredDaemon | undefined;
		for (;;) {
			const daemon = await this.#daemonFor(path, lost, context.signal);
			let client: TtrpcClient;
			try {
				client = await clients.of(daemon, context.signal);
			} catch (error) {
				context.signal.throwIfAborted();
				if (performance.now() - startedAt > this.#waitMs) {
					throw this.#unreachable(daemon, error);
				}

				await pause(reconnectPauseMs, context.signal);
				continue;
			}

			try {
				return await client.call(
					rawMethod(path),
					request,
					{
						...present({timeoutMs: timeoutMs && timeoutMs - (performance.now() - startedAt)}),
						metadata: Object.fromEntries(metadata),
					},
					context.signal,
				);
			} catch (error) {
				// The daemon has answered, or the caller has given up.
				if (error instanceof TtrpcError || context.signal.aborted || isDeadline(error)) {
					throw error;
				}

				lost = daemon;
				if (!repeatable.has(path)) {
					throw this.#lost(path, error);
				}

				this.#options.observer.notify({kind: 'call-repeated', method});
			}
		}
	}

	/**
	 * @param lost a daemon that has just ended; it may still be registered, because the end of its connection is not
	 * noticed yet
	 */
	async #daemonFor(path: string, lost: RegisteredDaemon | undefined, signal: AbortSignal): Promise<RegisteredDaemon> {
		const {daemons, observer} = this.#options;
		const {current} = daemons;
		if (current !== undefined && current !== lost) {
			return current;
		}

		const method = methodName(path);
		const startedAt = performance.now();
		observer.notify({kind: 'call-waits', method});
		using scope = new Scope(signal, this.#ending.signal).deadline(this.#waitMs, noDaemon(this.#waitMs));
		try {
			const daemon = await daemons.next(lost, scope.signal);
			observer.notify({kind: 'call-waited', method, durationMs: Math.round(performance.now() - startedAt)});
			return daemon;
		} catch (error) {
			observer.notify({kind: 'call-lost', method, error: toError(error)});
			throw error;
		}
	}

	#unreachable({socketPath}: RegisteredDaemon, cause: unknown): AdaptorError {
		return new AdaptorError({
			code: 'unavailable',
			what: 'The daemon accepts no connections',
			where: {path: socketPath},
			remedy: 'Check the pod of osc-caa-ds on this node.',
			cause,
		});
	}

	#lost(path: string, cause: unknown): AdaptorError {
		const error = new AdaptorError({
			code: 'unavailable',
			what: 'The daemon ended during the call; this call is not safe to repeat',
			where: {method: path},
			remedy: 'The next daemon rolls back the interrupted work, and kubelet retries.',
			cause,
		});
		this.#options.observer.notify({kind: 'call-lost', method: methodName(path), error});
		return error;
	}

	/** gRPC: its clients reconnect by themselves, so a connection ends with its daemon. Never rejects. */
	async #pipe(socket: Socket): Promise<void> {
		using scope = new Scope(this.#ending.signal).deadline(this.#waitMs, noDaemon(this.#waitMs));
		this.#piped.add(socket);
		socket.once('close', () => {
			this.#piped.delete(socket);
			scope.abort(new Error('closed'));
		});
		try {
			const daemon = await this.#options.daemons.next(undefined, scope.signal);
			const upstream = createConnection(daemon.socketPath);
			const end = (): void => {
				socket.destroy();
				upstream.destroy();
			};

			upstream.on('error', end).once('close', end);
			socket.on('error', end).once('close', end);
			await once(upstream, 'connect', {signal: scope.signal});
			socket.pipe(upstream).pipe(socket);
		} catch {
			socket.destroy();
		}
	}
}

/** The connections of one caller to daemons. */
class DaemonClients implements AsyncDisposable {
	readonly #clients = new Map<RegisteredDaemon, Promise<TtrpcClient>>();
	#isOver = false;

	/** @throws 'unavailable' if the daemon does not accept a connection */
	async of(daemon: RegisteredDaemon, signal: AbortSignal): Promise<TtrpcClient> {
		const known = this.#clients.get(daemon);
		if (known !== undefined) {
			return known;
		}

		const connecting = this.#connect(daemon, signal);
		this.#clients.set(daemon, connecting);
		const forget = (): void => {
			if (this.#clients.get(daemon) === connecting) {
				this.#clients.delete(daemon);
			}
		};

		connecting.then(async client => client.closed).then(forget, forget);
		return connecting;
	}

	/** The daemon sees that the caller is gone, and ends its calls. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#isOver = true;
		await Promise.allSettled([...this.#clients.values()].map(async client => (await client).close()));
	}

	async #connect({socketPath}: RegisteredDaemon, signal: AbortSignal): Promise<TtrpcClient> {
		// Other calls of the same caller use the connection too, so the signal of this one must not end it.
		signal.throwIfAborted();
		const client = await connect(socketPath, neverAborts);
		if (this.#isOver) {
			await client.close();
		}

		return client;
	}
}

function rawMethod(path: string): ClientMethod<Buffer, Buffer> {
	return {path, requestSerialize: bytes => bytes, responseDeserialize: bytes => bytes};
}

/** The name of the method without its service. */
function methodName(path: string): string {
	return path.slice(path.lastIndexOf('/') + 1);
}

function isDeadline(error: unknown): boolean {
	return error instanceof AdaptorError && error.code === 'deadline-exceeded';
}

function noDaemon(waitMs: number): AdaptorError {
	return new AdaptorError({
		code: 'unavailable',
		what: `No daemon has registered within ${Math.round(waitMs / 1000)} s`,
		remedy: 'Check the pod of osc-caa-ds on this node: its log contains the reason why it does not start.',
	});
}

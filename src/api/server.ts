/** Serves hypervisor.sock: the first bytes of a connection select ttrpc or gRPC; both use the same handlers. */
import type {Socket} from 'node:net';
import {AdaptorError} from '../core/errors.ts';
import type {Logger} from '../core/log.ts';
import type {Observer} from '../core/observer.ts';
import type {Sandboxes} from '../sandbox/ports.ts';
import {TtrpcServer} from '../ttrpc/server.ts';
import {loadContract} from './contract.ts';
import type {ApiEvent} from './events.ts';
import type {GrpcEndpoint} from './grpc.ts';
import {onProtocol} from '../ttrpc/protocol.ts';
import {assertReachable} from './reachability.ts';
import {services} from './services.ts';
import {listen} from '../core/server-socket.ts';
import {toStatus} from './status.ts';

export interface ApiOptions {
	/** Absolute path of the unix socket. */
	readonly path: string;
	/** The path that shims use; the same path if absent. */
	readonly publicPath?: string;
	readonly sandboxes: Sandboxes;
	/** How long disposing waits for running calls. */
	readonly drainTimeoutMs: number;
	/** Called after the socket was bound again: in the meantime, another daemon may have served calls and ended. */
	readonly onBoundAgain?: () => void;
	readonly observer: Observer<ApiEvent>;
	/** For messages about the socket. */
	readonly log: Logger;
}

export interface ApiServer extends AsyncDisposable {
	/** Path of the socket. */
	readonly path: string;
	/** Another daemon served the socket before and may still have running calls. */
	readonly tookOver: boolean;
	/**
	 * Calls the API through its socket, like a shim.
	 * @throws if nobody answers
	 */
	assertReachable(signal: AbortSignal): Promise<void>;
}

/**
 * Serves until disposed. Disposing accepts no new connections, waits for running calls within the drain timeout, and
 * closes.
 */
export async function serveApi(
	{path, publicPath = path, sandboxes, drainTimeoutMs, onBoundAgain, observer, log}: ApiOptions,
	signal: AbortSignal,
): Promise<ApiServer> {
	const contract = loadContract();
	const ending = new AbortController();
	const served = services(contract, sandboxes, observer, ending.signal);
	await using parts = new AsyncDisposableStack();
	// Loaded with the first gRPC connection: current shims use ttrpc, and the gRPC libraries are a tenth of the
	// resident memory of an idle daemon.
	let grpc: Promise<GrpcEndpoint> | undefined;
	const loadGrpc = async (): Promise<GrpcEndpoint> => {
		const {grpcEndpoint} = await import('./grpc.ts');
		return grpcEndpoint({contract, services: served, toStatus, drainTimeoutMs});
	};
	const ttrpc = new TtrpcServer({
		toStatus,
		disposeMs: drainTimeoutMs,
		onBroken: error => observer.notify({kind: 'caller-cut-off', error}),
	});
	// Both at the same time: they share the drain timeout.
	parts.defer(async () => {
		ending.abort(
			new AdaptorError({
				code: 'unavailable',
				what: 'The daemon is stopping',
				remedy: 'Retry after the restart.',
			}),
		);
		await Promise.all([
			grpc?.then(async endpoint => endpoint[Symbol.asyncDispose]()),
			ttrpc[Symbol.asyncDispose](),
		]);
	});
	for (const service of served) {
		ttrpc.register(service);
	}

	// Connections whose protocol is not known yet; the others belong to the server of their protocol.
	const undecided = parts.adopt(new Set<Socket>(), sockets => {
		for (const socket of sockets) {
			socket.destroy();
		}
	});
	const listener = parts.use(
		await listen(
			path,
			socket => {
				undecided.add(socket);
				socket.once('close', () => undecided.delete(socket));
				onProtocol(socket, protocol => {
					observer.notify({kind: 'caller-connected', protocol});
					if (protocol === 'ttrpc') {
						undecided.delete(socket);
						ttrpc.serve(socket);
						return;
					}

					grpc ??= loadGrpc();
					void grpc.then(endpoint => {
						// Either side may have closed it meanwhile.
						if (undecided.delete(socket)) {
							endpoint.accept(socket);
						}
					});
				});
			},
			log,
			signal,
			onBoundAgain,
		),
	);
	const resources = parts.move();
	return {
		path,
		tookOver: listener.tookOver,
		assertReachable: async limit => assertReachable(publicPath, contract, limit),
		[Symbol.asyncDispose]: async () => resources.disposeAsync(),
	};
}

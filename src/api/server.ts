/**
 * Everything that is served on hypervisor.sock: each connection goes to ttrpc or gRPC by its first bytes, both serve
 * the same handlers.
 */
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
	/** Where shims reach the API: the same path, if absent. */
	readonly publicPath?: string;
	readonly sandboxes: Sandboxes;
	/** How long disposing waits for calls that are under way. */
	readonly drainTimeoutMs: number;
	/** Called when the socket was bound again: another daemon may have served calls, and is gone. */
	readonly onBoundAgain?: () => void;
	readonly observer: Observer<ApiEvent>;
	/** For what happens to the socket. */
	readonly log: Logger;
}

export interface ApiServer extends AsyncDisposable {
	/** Of the socket. */
	readonly path: string;
	/** Another daemon was serving the socket, and may still have calls under way. */
	readonly tookOver: boolean;
	/** Calls the API by its socket's path, as a shim would. @throws when nobody answers there */
	assertReachable(signal: AbortSignal): Promise<void>;
}

/** Serves until disposed: then takes no new connections, lets calls finish within the drain time-out, and closes. */
export async function serveApi(
	{path, publicPath = path, sandboxes, drainTimeoutMs, onBoundAgain, observer, log}: ApiOptions,
	signal: AbortSignal,
): Promise<ApiServer> {
	const contract = loadContract();
	const ending = new AbortController();
	const served = services(contract, sandboxes, observer, ending.signal);
	await using parts = new AsyncDisposableStack();
	// Loaded with its first connection: today's shims speak ttrpc, and gRPC's libraries are a tenth of what an idle
	// daemon keeps resident.
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
	// Both at once: the time to drain is one.
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

	// Connections that have not said yet what they speak; those that have belong to their protocol's server.
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
						// It may have been closed meanwhile, by either side.
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

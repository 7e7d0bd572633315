/** Serves the status API at status.sock, mode 0600. */
import type {Socket} from 'node:net';
import type {Logger} from '../core/log.ts';
import {listen} from '../core/server-socket.ts';
import {TtrpcServer} from '../ttrpc/server.ts';
import {toStatus} from '../ttrpc/status.ts';
import {loadStatusContract} from './contract.ts';
import {statusHandlers, type StatusContext} from './service.ts';

/** The daemon goes on without it if the socket cannot be served. Disposing closes all connections. */
export async function serveStatus(
	path: string,
	context: StatusContext,
	log: Logger,
	signal: AbortSignal,
): Promise<AsyncDisposable> {
	const server = new TtrpcServer({toStatus});
	server.register({definition: loadStatusContract(), handlers: statusHandlers(context)});
	await using parts = new AsyncDisposableStack();
	parts.defer(async () => server.close());
	try {
		parts.use(await listen(path, (socket: Socket) => server.serve(socket), log, signal));
	} catch (error) {
		signal.throwIfAborted();
		log.warn({path, err: error}, 'could not serve the status API; "pods" does not work on this node');
	}

	return parts.move();
}

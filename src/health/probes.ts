/**
 * What kubelet asks by HTTP on the loopback of the node: `/startup` (as the existing adaptor's) and `/healthz`. Both say 200, and that they do is the
 * news: this is served when hypervisor.sock is, and by the same event loop. Says nothing of the KVM host: a restart of the daemon mends no host.
 */
import {createServer, type Server} from 'node:http';
import {backOff, pause} from '../lifetime.ts';
import type {Logger} from '../log.ts';

export interface ProbeOptions {
	/** PROBE_PORT */
	readonly port: number;
	readonly log: Logger;
	/** Pauses between attempts to listen: the first, and the longest. */
	readonly retryMs?: readonly [first: number, longest: number];
}

const paths = ['/startup', '/healthz'];

/**
 * Resolves at once. A port that is taken is tried again in the background: during a rolling update it is the other daemon's, on a node's own network
 * perhaps a stranger's, and neither is worth a pod.
 */
export function serveProbes({port, log, retryMs = [500, 30_000]}: ProbeOptions): AsyncDisposable {
	const ending = new AbortController();
	const listening = keepListening(port, log, retryMs, ending.signal);
	return {
		async [Symbol.asyncDispose]() {
			ending.abort();
			const server = await listening;
			if (server?.listening) {
				const {promise, resolve} = Promise.withResolvers<undefined>();
				server.close(() => resolve(undefined));
				server.closeAllConnections();
				await promise;
			}
		},
	};
}

async function keepListening(port: number, log: Logger, retryMs: readonly [number, number], signal: AbortSignal): Promise<Server | undefined> {
	let isTold = false;
	for (const retryInMs of backOff(...retryMs)) {
		try {
			const server = await listen(port);
			log.debug({port}, 'probes are served');
			return server;
		} catch (error) {
			log[isTold ? 'debug' : 'warn']({port, retryInMs, err: error}, 'the port of the probes is taken, it is tried again (PROBE_PORT)');
			isTold = true;
		}

		try {
			await pause(retryInMs, signal);
		} catch {
			break;
		}
	}

	return undefined;
}

async function listen(port: number): Promise<Server> {
	const server = createServer((request, response) => {
		const isKnown = paths.includes(request.url ?? '');
		const isAsked = request.method === 'GET' || request.method === 'HEAD';
		response.writeHead(isKnown ? isAsked ? 200 : 405 : 404, {'content-type': 'text/plain'});
		response.end(isKnown && isAsked ? 'ok\n' : '');
	});
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen(port, '127.0.0.1', () => resolve(undefined));
	await promise;
	server.off('error', reject);
	// One connection that could not be accepted is that one's loss.
	server.on('error', () => undefined);
	return server;
}

/**
 * What kubelet asks by HTTP: `/startup` (as upstream's) and `/healthz`. The daemon's go through hypervisor.sock itself,
 * as a shim does: 200 when it is answered there, 503 with the reason otherwise. During an update that is the other
 * daemon, and right: the node is served. Says nothing of the KVM host: a restart of the daemon mends no host.
 */
import {createServer, type RequestListener, type Server, type ServerResponse} from 'node:http';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {retry} from '../core/concurrency/retry.ts';
import {toError} from '../core/errors.ts';
import type {Logger} from '../core/log.ts';

export interface ProbeOptions {
	/** PROBE_PORT */
	readonly port: number;
	/** Resolves when it is; the daemon's API when it answers at its socket. */
	readonly assertHealthy: (signal: AbortSignal) => Promise<void>;
	/** The address to listen at: the loopback of the node unless given. */
	readonly host?: string;
	readonly log: Logger;
	/** Pauses between attempts to listen: the first, and the longest. */
	readonly retryMs?: readonly [first: number, longest: number];
}

const paths = ['/startup', '/healthz'];

/**
 * Resolves at once. A port that is taken is tried again in the background: during a rolling update it is the other
 * daemon's, on a node's own network perhaps a stranger's, and neither is worth a pod.
 */
export function serveProbes(options: ProbeOptions): AsyncDisposable {
	const ending = new AbortController();
	const listening = keepListening(options, ending.signal);
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

/** Undefined when the signal aborts before. Never throws. */
async function keepListening(
	{port, host = '127.0.0.1', log, retryMs = [500, 30_000], assertHealthy}: ProbeOptions,
	signal: AbortSignal,
): Promise<Server | undefined> {
	try {
		const server = await retry(
			async () => listen({port, host}, answer(assertHealthy, log, signal)),
			{
				backOff: retryMs,
				onFailure: (error, {attempt, retryInMs}) =>
					log[attempt === 1 ? 'warn' : 'debug'](
						{port, retryInMs, err: error},
						'the port of the probes is taken; trying again (PROBE_PORT)',
					),
			},
			signal,
		);
		log.debug({port}, 'probes are served');
		return server;
	} catch {
		return undefined;
	}
}

function answer(assertHealthy: ProbeOptions['assertHealthy'], log: Logger, signal: AbortSignal): RequestListener {
	const failures = new FailureLog();
	const reply = (response: ServerResponse, status: number, text = ''): void => {
		response.writeHead(status, {'content-type': 'text/plain'});
		response.end(text);
	};
	return (request, response) => {
		if (!paths.includes(request.url ?? '')) {
			reply(response, 404);
			return;
		}

		if (request.method !== 'GET' && request.method !== 'HEAD') {
			reply(response, 405);
			return;
		}

		assertHealthy(signal).then(
			() => {
				failures.recovered();
				reply(response, 200, 'ok\n');
			},
			(error: unknown) => {
				if (!signal.aborted && failures.failed()) {
					log.error({err: error}, 'health check failed');
				}

				reply(response, 503, `${toError(error).message}\n`);
			},
		);
	};
}

async function listen(at: {readonly port: number; readonly host: string}, onRequest: RequestListener): Promise<Server> {
	const server = createServer(onRequest);
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen(at, () => resolve(undefined));
	await promise;
	server.off('error', reject);
	// One connection that could not be accepted is that one's loss.
	server.on('error', () => undefined);
	return server;
}

/**
 * The HTTP probes of kubelet: `/startup` (as in upstream) and `/healthz`. Those of the daemon call hypervisor.sock like
 * a shim: 200 if it answers, else 503 with the reason. During an update the other daemon may answer, which is correct:
 * the node is served. They do not depend on the KVM host, because a restart of the daemon would not repair it.
 */
import type {RequestListener, Server, ServerResponse} from 'node:http';
import {builtin} from '../core/builtin.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {retry} from '../core/concurrency/retry.ts';
import {toError} from '../core/errors.ts';
import type {Logger} from '../core/log.ts';

export interface ProbeOptions {
	/** PROBE_PORT */
	readonly port: number;
	/** Resolves if the process is healthy. */
	readonly assertHealthy: (signal: AbortSignal) => Promise<void>;
	/** The address to listen at; default: the loopback address of the node. */
	readonly host?: string;
	readonly log: Logger;
	/** First and longest pause between attempts to listen. */
	readonly retryMs?: readonly [first: number, longest: number];
}

const paths = ['/startup', '/healthz'];

/**
 * Returns at once. If the port is in use, it retries in the background: during a rolling update the other daemon uses
 * it, and on the network of the node another program may. Neither should end pods.
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

/** Undefined if the signal aborts before the port is free. Never throws. */
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
						'the port for the probes is in use; trying again (PROBE_PORT)',
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
	const server = builtin('node:http').createServer(onRequest);
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen(at, () => resolve(undefined));
	await promise;
	server.off('error', reject);
	// A connection that cannot be accepted must not end the process.
	server.on('error', () => undefined);
	return server;
}

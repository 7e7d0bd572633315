/**
 * The HTTP probes of kubelet: `/startup` (as in upstream) and `/healthz`. Those of the daemon call hypervisor.sock like
 * a shim: 200 if it answers, else 503 with the reason. During an update the other daemon may answer, which is correct:
 * the node is served. They do not depend on the KVM host, because a restart of the daemon would not repair it.
 */
import type {RequestListener, ServerResponse} from 'node:http';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {toError} from '../core/errors.ts';
import {serveHttpPort} from '../core/http-port.ts';
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
export function serveProbes({
	port,
	host = '127.0.0.1',
	log,
	retryMs = [500, 30_000],
	assertHealthy,
}: ProbeOptions): AsyncDisposable {
	const ending = new AbortController();
	const server = serveHttpPort({
		at: {host, port},
		onRequest: answer(assertHealthy, log, ending.signal),
		retryMs,
		onFailure: (error, {attempt, retryInMs}) =>
			log[attempt === 1 ? 'warn' : 'debug'](
				{port, retryInMs, err: error},
				'the port for the probes is in use; trying again (PROBE_PORT)',
			),
		onListening: () => log.debug({port}, 'probes are served'),
	});
	return {
		async [Symbol.asyncDispose]() {
			ending.abort();
			await server[Symbol.asyncDispose]();
		},
	};
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

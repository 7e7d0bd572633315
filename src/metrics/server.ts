/**
 * Serves the metrics of this process over HTTP: `GET /metrics`. Plain HTTP and without authorisation: meant for the
 * loopback address, with a proxy such as kube-rbac-proxy in front of it (deploy/monitoring).
 */
import type {RequestListener, Server, ServerResponse} from 'node:http';
import {builtin} from '../core/builtin.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {retry} from '../core/concurrency/retry.ts';
import {SharedAnswer} from '../core/concurrency/shared-answer.ts';
import type {ListenAddress} from '../core/listen-address.ts';
import {neverAborts} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {Exposition} from './registry.ts';

export interface MetricsServerOptions {
	readonly at: ListenAddress;
	/** The variable with the port, for remedies. */
	readonly setting: string;
	readonly exposition: () => Promise<Exposition>;
	readonly log: Logger;
	/** First and longest pause between attempts to listen. */
	readonly retryMs?: readonly [first: number, longest: number];
}

const path = '/metrics';
/** Prometheus servers in pairs and a person with curl need few. Further connections are closed at once. */
const mostConnections = 16;
/** Time limit for a request to arrive, and for a connection without traffic. */
const requestTimeoutMs = 5000;
/** A scrape has no body and short headers. */
const mostHeaderBytes = 8 << 10;

/**
 * Returns at once. If the port is in use, it retries in the background: during a rolling update the predecessor uses
 * it. No pod may depend on metrics.
 */
export function serveMetrics(options: MetricsServerOptions): AsyncDisposable {
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

/** Undefined if the signal aborts before. Never throws. */
async function keepListening(
	{at, setting, exposition, log, retryMs = [500, 5000]}: MetricsServerOptions,
	signal: AbortSignal,
): Promise<Server | undefined> {
	const fields = {address: at.host, port: at.port};
	try {
		const server = await retry(
			async () => listen(at, answer(exposition, log)),
			{
				backOff: retryMs,
				onFailure: (error, {attempt, retryInMs}) =>
					log[attempt === 1 ? 'warn' : 'debug'](
						{...fields, retryInMs, err: error, remedy: `Choose another ${setting}.`},
						'could not listen on the port of the metrics; trying again',
					),
			},
			signal,
		);
		log.info(fields, 'metrics are served');
		return server;
	} catch {
		return undefined;
	}
}

function answer(exposition: MetricsServerOptions['exposition'], log: Logger): RequestListener {
	const failures = new FailureLog();
	// Scrapes at the same time share one collection.
	const collected: SharedAnswer<Exposition> = new SharedAnswer(async () => {
		try {
			return await exposition();
		} finally {
			collected.forget();
		}
	});
	return (request, response) => {
		if (request.url?.split('?', 1)[0] !== path) {
			reply(response, 404, `Metrics are at ${path}.`);
			return;
		}

		if (request.method !== 'GET') {
			response.setHeader('Allow', 'GET');
			reply(response, 405, 'Read the metrics with GET.');
			return;
		}

		collected.get(neverAborts).then(
			({contentType, text}) => {
				failures.recovered();
				response.writeHead(200, {'Content-Type': contentType, 'Content-Length': Buffer.byteLength(text)});
				response.end(text);
			},
			(error: unknown) => {
				if (failures.failed()) {
					log.error({err: error}, 'could not collect the metrics');
				}

				reply(response, 500, 'Could not collect the metrics; see the log.');
			},
		);
	};
}

function reply(response: ServerResponse, status: number, text: string): void {
	// A body that may follow is not read.
	response.writeHead(status, {'Content-Type': 'text/plain; charset=utf-8', Connection: 'close'}).end(`${text}\n`);
}

async function listen({host, port}: ListenAddress, onRequest: RequestListener): Promise<Server> {
	const server = builtin('node:http').createServer(
		{
			requestTimeout: requestTimeoutMs,
			headersTimeout: requestTimeoutMs,
			keepAliveTimeout: requestTimeoutMs,
			connectionsCheckingInterval: requestTimeoutMs / 5,
			maxHeaderSize: mostHeaderBytes,
		},
		onRequest,
	);
	server.maxConnections = mostConnections;
	server.setTimeout(2 * requestTimeoutMs);
	const {promise, resolve, reject} = Promise.withResolvers<undefined>();
	server.once('error', reject);
	server.listen({host, port}, () => resolve(undefined));
	await promise;
	server.off('error', reject);
	// A connection that cannot be accepted must not end the process.
	server.on('error', () => undefined);
	return server;
}

/**
 * A small HTTP server for kubelet and Prometheus: few connections, short requests without a body. If its port is in
 * use, it retries in the background: during a rolling update the predecessor has it, and no pod may depend on it.
 */
import type {RequestListener, Server} from 'node:http';
import {builtin} from './builtin.ts';
import {retry} from './concurrency/retry.ts';
import type {ListenAddress} from './listen-address.ts';

export interface HttpPortOptions {
	readonly at: ListenAddress;
	readonly onRequest: RequestListener;
	/** First and longest pause between attempts to listen. */
	readonly retryMs: readonly [first: number, longest: number];
	readonly onFailure: (error: unknown, attempt: {readonly attempt: number; readonly retryInMs: number}) => void;
	readonly onListening: () => void;
}

/** Two probes, Prometheus servers in pairs and a person with curl need few. Further connections are closed at once. */
const mostConnections = 16;
/** Time limit for a request to arrive, and for a connection without traffic. */
const requestTimeoutMs = 5000;
/** A request has no body and short headers. */
const mostHeaderBytes = 8 << 10;

/** Returns at once. Disposing ends all connections. */
export function serveHttpPort(options: HttpPortOptions): AsyncDisposable {
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
	{at, onRequest, retryMs, onFailure, onListening}: HttpPortOptions,
	signal: AbortSignal,
): Promise<Server | undefined> {
	try {
		const server = await retry(async () => listen(at, onRequest), {backOff: retryMs, onFailure}, signal);
		onListening();
		return server;
	} catch {
		return undefined;
	}
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

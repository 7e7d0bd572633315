/**
 * Serves admission reviews over HTTPS and tells by HTTP whether it does: bytes, limits, time-outs and draining. What an answer is, admission-review.ts
 * knows. HTTP/1.1 only: the API server keeps its connections, and what is not spoken cannot be abused (CVE-2023-44487).
 */
import {once} from 'node:events';
import {createServer as createHttpServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse} from 'node:http';
import {createServer as createHttpsServer} from 'node:https';
import type {AddressInfo} from 'node:net';
import {setTimeout as delay} from 'node:timers/promises';
import type {SecureContextOptions} from 'node:tls';
import {AdaptorError, toError} from '../errors.ts';
import {Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import {answerReview, type ReviewPolicy} from './admission-review.ts';
import {followTlsFiles} from './tls-files.ts';

export interface WebhookOptions {
	/** Ports on all addresses; 0 for any that is free. */
	readonly port: number;
	readonly probePort: number;
	readonly tlsDirectory: string;
	readonly tls: Pick<SecureContextOptions, 'minVersion' | 'ciphers'>;
	readonly policy: ReviewPolicy;
	/** How long requests are still taken after a stop was asked for: that long some API server may not know yet that we go. */
	readonly drainDelayMs: number;
	/** How often the certificate's files are looked at. */
	readonly tlsIntervalMs?: number;
	readonly log: Logger;
}

/** Disposing tells the probes, goes on for a while, then closes when what is under way has been answered. */
export interface Webhook extends AsyncDisposable {
	readonly port: number;
	readonly probePort: number;
}

const path = '/mutate-v1-pod';
/** The API server takes requests of up to 3 MiB, and sends an object twice at most. */
const maxBodyBytes = 7 << 20;
/** As patient as the API server is by default. */
const requestTimeoutMs = 10_000;
/** The API server drops a connection after 90 s without use (Go, net/http, DefaultTransport); it must be the one who does. */
const keepAliveTimeoutMs = 120_000;
const closeTimeoutMs = 10_000;

/** @throws AdaptorError 'failed-precondition' when there is no usable certificate, or a port cannot be listened on */
export async function startWebhook({port, probePort, tlsDirectory, tls, policy, drainDelayMs, tlsIntervalMs = 10_000, log}: WebhookOptions): Promise<Webhook> {
	await using parts = new AsyncDisposableStack();
	let state: 'starting' | 'serving' | 'draining' = 'starting';
	const probes = createHttpServer(probeListener(() => state === 'serving'));
	parts.defer(async () => {
		probes.close();
		probes.closeAllConnections();
	});
	const server = createHttpsServer({
		handshakeTimeout: requestTimeoutMs,
		requestTimeout: requestTimeoutMs,
		headersTimeout: requestTimeoutMs,
		connectionsCheckingInterval: requestTimeoutMs / 10,
		keepAliveTimeout: keepAliveTimeoutMs,
	}, (request, response) => {
		if (state === 'draining') {
			// The next request of this connection shall come to our successor.
			response.setHeader('Connection', 'close');
		}

		answer(request, response, policy, log).catch((error: unknown) => {
			log.error({err: error}, 'admission review failed');
			reply(response, 500, 'The webhook failed; its log tells why.');
		});
	});
	server.on('tlsClientError', error => log.debug({err: toError(error)}, 'TLS handshake failed'));
	parts.use(await followTlsFiles({directory: tlsDirectory, tls, log, intervalMs: tlsIntervalMs, onChange: options => server.setSecureContext(options)}));
	parts.defer(async () => closed(server));

	const ports = {port: await listen(server, port), probePort: await listen(probes, probePort)};
	state = 'serving';
	const rest = parts.move();
	let disposed: Promise<void> | undefined;
	return {
		...ports,
		async [Symbol.asyncDispose]() {
			disposed ??= (async () => {
				state = 'draining';
				await delay(drainDelayMs);
				await rest.disposeAsync();
			})();
			return disposed;
		},
	};
}

async function answer(request: IncomingMessage, response: ServerResponse, policy: ReviewPolicy, log: Logger): Promise<void> {
	if (request.url?.split('?', 1)[0] !== path) {
		reply(response, 404, `Admission reviews go to ${path}.`);
		return;
	}

	if (request.method !== 'POST') {
		response.setHeader('Allow', 'POST');
		reply(response, 405, 'Admission reviews are posted.');
		return;
	}

	if (!/^application\/json(?:;|$)/iv.test(request.headers['content-type']?.trim() ?? '')) {
		reply(response, 415, 'Admission reviews are application/json.');
		return;
	}

	let body: Buffer | undefined;
	try {
		body = await readBody(request);
	} catch (error) {
		log.debug({err: error}, 'admission request broke off');
		return;
	}

	if (body === undefined) {
		// The rest is not read, so the connection is of no further use.
		response.setHeader('Connection', 'close');
		reply(response, 413, `Admission reviews have at most ${maxBodyBytes} bytes.`);
		return;
	}

	try {
		const {review, pod, size, denial} = answerReview(parseJson(body), policy);
		if (denial !== undefined) {
			log.warn({...(pod === undefined ? {} : {pod}), reason: denial}, 'pod denied');
		} else if (size !== undefined) {
			log.info({
				...(pod === undefined ? {} : {pod}),
				...(size.vcpus === undefined ? {} : {vcpus: Number(size.vcpus)}),
				...(size.memoryMib === undefined ? {} : {memoryMib: Number(size.memoryMib)}),
			}, 'pod changed');
		}

		response.writeHead(200, {'Content-Type': 'application/json'}).end(JSON.stringify(review));
	} catch (error) {
		if (!(error instanceof AdaptorError && error.code === 'invalid-argument')) {
			throw error;
		}

		log.warn({reason: error.what}, 'admission request refused');
		reply(response, 400, `${error.what}.`);
	}
}

/** @returns `undefined` when it is too long @throws when the connection ends before it does */
async function readBody(request: IncomingMessage): Promise<Buffer | undefined> {
	if (Number(request.headers['content-length'] ?? 0) > maxBodyBytes) {
		return undefined;
	}

	const chunks: Buffer[] = [];
	let bytes = 0;
	// Not destroyed when it is left: the refusal has to go out on the same socket.
	for await (const chunk of request.iterator({destroyOnReturn: false}) as AsyncIterable<Buffer>) {
		chunks.push(chunk);
		bytes += chunk.length;
		if (bytes > maxBodyBytes) {
			return undefined;
		}
	}

	return Buffer.concat(chunks);
}

/** @throws AdaptorError 'invalid-argument' */
function parseJson(body: Buffer): unknown {
	try {
		return JSON.parse(body.toString());
	} catch (cause) {
		throw new AdaptorError({code: 'invalid-argument', what: 'The request is not JSON', cause});
	}
}

function reply(response: ServerResponse, status: number, text: string): void {
	if (!response.headersSent) {
		response.writeHead(status, {'Content-Type': 'text/plain; charset=utf-8'}).end(`${text}\n`);
	}
}

function probeListener(isReady: () => boolean): RequestListener {
	return (request, response) => {
		const [url] = request.url?.split('?', 1) ?? [];
		if (url === '/healthz' || url === '/readyz') {
			const isWell = url === '/healthz' || isReady();
			reply(response, isWell ? 200 : 503, isWell ? 'ok' : 'stopping');
		} else {
			reply(response, 404, 'Probes are /healthz and /readyz.');
		}
	};
}

async function listen(server: Server, port: number): Promise<number> {
	server.listen(port);
	try {
		await once(server, 'listening');
	} catch (cause) {
		throw new AdaptorError({code: 'failed-precondition', what: 'Could not listen on a port', where: {port}, remedy: 'Choose another WEBHOOK_PORT or WEBHOOK_PROBE_PORT.', cause});
	}

	// One connection that could not be accepted is that one's loss; without a listener it would end the process.
	server.on('error', () => undefined);
	return (server.address() as AddressInfo).port;
}

/** Idle connections go at once, others when they have been answered, and all when that takes too long. */
async function closed(server: Server): Promise<void> {
	if (!server.listening) {
		return;
	}

	using limit = new Scope().deadline(closeTimeoutMs, 'the last admission reviews');
	limit.signal.addEventListener('abort', () => server.closeAllConnections(), {once: true});
	server.close();
	await once(server, 'close');
}

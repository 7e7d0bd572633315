/**
 * Serves admission reviews over HTTPS, and probes over HTTP: bytes, limits, timeouts and draining. admission-review.ts
 * creates the answers. HTTP/1.1 only: the API server reuses its connections, and a protocol that is not supported
 * cannot be abused (CVE-2023-44487).
 */
import {once} from 'node:events';
import type {IncomingMessage, RequestListener, Server, ServerResponse} from 'node:http';
import type {AddressInfo, Socket} from 'node:net';
import {pipeline} from 'node:stream';
import {setTimeout as delay} from 'node:timers/promises';
import type {SecureContextOptions} from 'node:tls';
import {builtin} from '../core/builtin.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {JsonError, parseJson} from '../core/json.ts';
import {Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import {noObserver, type Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import {answerReview, type ReviewPolicy} from './admission-review.ts';
import {Connections} from './connections.ts';
import type {WebhookEvent} from './events.ts';
import {Intake, type IntakeLimits, type Refusal} from './intake.ts';
import {followTlsFiles} from './tls-files.ts';

export interface WebhookLimits extends IntakeLimits {
	readonly connections: number;
}

export interface WebhookOptions {
	/** Ports on all addresses; 0 for any free port. */
	readonly port: number;
	readonly probePort: number;
	readonly tlsDirectory: string;
	readonly tls: Pick<SecureContextOptions, 'minVersion' | 'ciphers'>;
	readonly policy: ReviewPolicy;
	/** How long requests are accepted after SIGTERM: until then an API server may not know that this server stops. */
	readonly drainDelayMs: number;
	/** PEM of the certificate authorities of clients; if absent, clients need no certificate. */
	readonly clientCa?: string;
	/**
	 * Time limit for a request to arrive; then it is answered with 408. A connection without progress for twice this
	 * time ends.
	 */
	readonly requestTimeoutMs?: number;
	readonly limits?: WebhookLimits;
	/** Interval of checks of the certificate files. */
	readonly tlsIntervalMs?: number;
	readonly observer?: Observer<WebhookEvent>;
	readonly log: Logger;
}

/** Disposing fails the readiness probe, serves for a while, then closes after running requests are answered. */
export interface Webhook extends AsyncDisposable {
	readonly port: number;
	readonly probePort: number;
}

const path = '/mutate-v1-pod';
/**
 * The API server accepts objects of up to 3 MiB, and sends one for a creation. All unfinished bodies and unread
 * answers, the TLS state of connections, and the parsed form of one body stay below the 256 MiB of the container. An
 * API server uses one connection for each running review.
 */
const defaultLimits: WebhookLimits = {bodyBytes: 3 << 20, unfinishedBytes: 6 << 20, connections: 256};
/** The default timeout of the API server. */
const defaultRequestTimeoutMs = 10_000;
/**
 * The API server closes a connection after 90 s without use (Go, net/http, DefaultTransport). The timeout here is
 * longer, so that the API server closes it first.
 */
const keepAliveTimeoutMs = 120_000;
/** Kubelets use one for each probe. */
const probeConnections = 64;
const pieceBytes = 16 << 10;
/** Running reviews take milliseconds; the API server gives up after 10 s by default. */
const closeTimeoutMs = 10_000;

/** @throws AdaptorError 'failed-precondition' if there is no usable certificate, or if listening on a port fails */
export async function startWebhook({
	port,
	probePort,
	tlsDirectory,
	tls,
	clientCa,
	policy,
	drainDelayMs,
	requestTimeoutMs = defaultRequestTimeoutMs,
	limits = defaultLimits,
	tlsIntervalMs = 10_000,
	observer = noObserver,
	log,
}: WebhookOptions): Promise<Webhook> {
	await using parts = new AsyncDisposableStack();
	let state: 'starting' | 'serving' | 'draining' = 'starting';
	// Without the check of the Host header, which Node would answer itself.
	const http = {
		requestTimeout: requestTimeoutMs,
		headersTimeout: requestTimeoutMs,
		connectionsCheckingInterval: Math.min(1000, requestTimeoutMs / 2),
		requireHostHeader: false,
	};
	const probes = builtin('node:http').createServer({...http, keepAliveTimeout: requestTimeoutMs});
	serve(
		probes,
		probeConnections,
		requestTimeoutMs,
		probeListener(() => state === 'serving'),
	);
	parts.defer(async () => {
		probes.close();
		probes.closeAllConnections();
	});
	const intake = new Intake(limits);
	const server = builtin('node:https').createServer({
		...http,
		...(clientCa === undefined ? {} : {ca: clientCa, requestCert: true, rejectUnauthorized: true}),
		handshakeTimeout: defaultRequestTimeoutMs,
		keepAliveTimeout: keepAliveTimeoutMs,
	});
	serve(server, limits.connections, requestTimeoutMs, (request, response) => {
		if (state === 'draining') {
			// The next request of this connection must go to the successor.
			response.setHeader('Connection', 'close');
		}

		// Admission reviews are answered with 200, also denials.
		response.once('close', () => {
			if (response.headersSent && response.statusCode !== 200) {
				observer.notify({kind: 'review-refused', status: response.statusCode});
			}
		});
		answer(request, response, {intake, limits, policy, observer, log}).catch((error: unknown) => {
			log.error({err: error}, 'admission review failed');
			reply(response, 500, 'Internal error of the webhook; see its log.');
		});
	});
	server.on('tlsClientError', error => log.debug({err: toError(error)}, 'TLS handshake failed'));
	parts.use(
		await followTlsFiles({
			directory: tlsDirectory,
			tls,
			log,
			intervalMs: tlsIntervalMs,
			onChange: options => server.setSecureContext({...options, ...present({ca: clientCa})}),
		}),
	);
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

/** Answers the requests of a limited number of connections. */
function serve(server: Server, mostConnections: number, requestTimeoutMs: number, listener: RequestListener): void {
	const connections = new Connections(mostConnections);
	server.on('connection', (socket: Socket) => connections.admit(socket));
	// Otherwise Node would answer an unknown expectation itself, without counting the answer.
	for (const event of ['request', 'checkExpectation']) {
		server.on(event, (request: IncomingMessage, response: ServerResponse) => {
			if (connections.use(request, response)) {
				listener(request, response);
			}
		});
	}

	// Timeout for unread answers. It is longer than the time limit of a request, which is answered with 408.
	server.setTimeout(2 * requestTimeoutMs);
}

interface AnswerContext {
	readonly intake: Intake;
	readonly limits: IntakeLimits;
	readonly policy: ReviewPolicy;
	readonly observer: Observer<WebhookEvent>;
	readonly log: Logger;
}

async function answer(
	request: IncomingMessage,
	response: ServerResponse,
	{intake, limits, policy, observer, log}: AnswerContext,
): Promise<void> {
	if (request.url?.split('?', 1)[0] !== path) {
		reply(response, 404, `Send admission reviews to ${path}.`);
		return;
	}

	if (request.method !== 'POST') {
		response.setHeader('Allow', 'POST');
		reply(response, 405, 'Send admission reviews with POST.');
		return;
	}

	if (!/^application\/json(?:;|$)/iv.test(request.headers['content-type']?.trim() ?? '')) {
		reply(response, 415, 'Send admission reviews as application/json.');
		return;
	}

	let body: Buffer | Refusal;
	try {
		body = await intake.read(request);
	} catch (error) {
		log.debug({err: error}, 'admission request aborted');
		return;
	}

	if (typeof body === 'string') {
		const [status, what] =
			body === 'too large'
				? [413, `Admission reviews have at most ${limits.bodyBytes} bytes.`]
				: [429, 'Too much data in unfinished admission reviews. Retry.'];
		replyEarly(request, response, status, what);
		return;
	}

	const startedAt = performance.now();
	try {
		const {review, pod, size, denial, warnings = []} = answerReview(parseReview(body), policy);
		if (denial !== undefined) {
			log.warn({...present({pod}), reason: denial}, 'pod denied');
		} else if (size !== undefined) {
			log.info(
				{
					...present({pod}),
					...(size.vcpus === undefined ? {} : {vcpus: Number(size.vcpus)}),
					...(size.memoryMib === undefined ? {} : {memoryMib: Number(size.memoryMib)}),
				},
				'pod changed',
			);
		}

		if (warnings.length > 0) {
			// The warnings of a pod that a controller creates reach the controller, not the user.
			log.info({...present({pod}), reason: warnings.join('; ')}, 'user warned: a peer pod cannot have this');
		}

		const json = Buffer.from(JSON.stringify(review));
		observer.notify({
			kind: 'review-answered',
			outcome: denial !== undefined ? 'denied' : size !== undefined ? 'changed' : 'unchanged',
			durationMs: performance.now() - startedAt,
		});
		intake.hold(response, json);
		response.writeHead(200, {'Content-Type': 'application/json', 'Content-Length': json.length});
		pipeline(pieces(json), response, error => {
			if (error) {
				log.debug({err: error}, 'could not send the admission response');
			}
		});
	} catch (error) {
		if (!(error instanceof AdaptorError && error.code === 'invalid-argument')) {
			throw error;
		}

		log.warn({reason: error.what}, 'admission request refused');
		reply(response, 400, `${error.what}.`);
	}
}

/** More than any valid pod has: a pod of 3 MiB of containers has a tenth of it. */
const bounds = {parts: 50_000, depth: 200};

/** A connection keeps the memory for encryption of its largest write. */
function* pieces(bytes: Buffer): Generator<Buffer> {
	for (let offset = 0; offset < bytes.length; offset += pieceBytes) {
		yield bytes.subarray(offset, offset + pieceBytes);
	}
}

/** @throws AdaptorError 'invalid-argument' */
function parseReview(body: Buffer): unknown {
	try {
		return parseJson(body, bounds);
	} catch (cause) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what:
				cause instanceof JsonError && cause.reason === 'too large'
					? 'The request has more values or levels than any valid pod'
					: 'The request is not JSON',
			cause,
		});
	}
}

function reply(response: ServerResponse, status: number, text: string): void {
	if (!response.headersSent) {
		response.writeHead(status, {'Content-Type': 'text/plain; charset=utf-8'}).end(`${text}\n`);
	}
}

/**
 * Answers while the caller may still be sending, and ends the connection. Further bytes are discarded until the caller
 * ends the connection too: closing a socket with unread bytes resets it, and the caller might not see the answer. The
 * timeouts of requests and sockets limit how long this takes.
 */
function replyEarly(request: IncomingMessage, response: ServerResponse, status: number, text: string): void {
	const {socket} = request;
	response.writeHead(status, {
		'Content-Type': 'text/plain; charset=utf-8',
		'Content-Length': Buffer.byteLength(text) + 1,
		Connection: 'close',
		...(status === 429 ? {'Retry-After': '1'} : {}),
	});
	response.write(`${text}\n`, () => socket.end());
	request.resume().once('end', () => socket.destroySoon());
}

function probeListener(isReady: () => boolean): RequestListener {
	return (request, response) => {
		const [url] = request.url?.split('?', 1) ?? [];
		if (url === '/healthz' || url === '/readyz') {
			const isWell = url === '/healthz' || isReady();
			reply(response, isWell ? 200 : 503, isWell ? 'ok' : 'stopping');
		} else {
			reply(response, 404, 'The probes are /healthz and /readyz.');
		}
	};
}

async function listen(server: Server, port: number): Promise<number> {
	server.listen(port);
	try {
		await once(server, 'listening');
	} catch (cause) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not listen on a port',
			where: {port},
			remedy: 'Choose another WEBHOOK_PORT or WEBHOOK_PROBE_PORT.',
			cause,
		});
	}

	// A connection that cannot be accepted must not end the process, as an error without a listener would.
	server.on('error', () => undefined);
	return (server.address() as AddressInfo).port;
}

/** Idle connections end at once, others after their answer, and all at the time limit. */
async function closed(server: Server): Promise<void> {
	if (!server.listening) {
		return;
	}

	using limit = new Scope().deadline(closeTimeoutMs, 'the last admission reviews');
	limit.signal.addEventListener('abort', () => server.closeAllConnections(), {once: true});
	server.close();
	await once(server, 'close');
}

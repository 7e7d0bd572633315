/**
 * HTTPS to the API server: authenticated requests, retried if that is safe. Knows JSON, but no kinds of objects. Uses
 * only node:https: the official client costs 85 MB of resident memory (docs/adr/0013).
 */
import type {IncomingMessage} from 'node:http';
import type {Agent} from 'node:https';
import {once} from 'node:events';
import {builtin} from '../core/builtin.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {retry} from '../core/concurrency/retry.ts';
import {JsonError, parseJson} from '../core/json.ts';
import {abortable, DeadlineError, Scope} from '../core/lifetime.ts';
import {KubernetesError, refusal, retryAfterOf} from './errors.ts';
import type {AnswerBounds} from './objects.ts';
import {Pieces} from './pieces.ts';
import type {ApiServerAddress, ServiceAccount} from './service-account.ts';

const https = builtin('node:https');

export interface ConnectionOptions {
	readonly server: ApiServerAddress;
	readonly account: ServiceAccount;
	/** Time limit of one attempt. */
	readonly requestTimeoutMs?: number;
	/** How long an unused connection is kept: a connection that died silently costs the next request its time. */
	readonly idleTimeoutMs?: number;
	/** Maximum bytes of one answer, or of one event of a watch. */
	readonly maxResponseBytes?: number;
	/** Pauses between attempts: the first, and the longest. */
	readonly retryMs?: readonly [first: number, longest: number];
}

export interface ApiRequest {
	readonly method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
	/** With its query. */
	readonly path: string;
	readonly body?: unknown;
	readonly contentType?: string;
	readonly accept?: string;
	/** Limits of the answer; without them `maxResponseBytes` is the only one. */
	readonly bounds?: AnswerBounds;
}

const attempts = 5;

export class ApiConnection implements Disposable {
	readonly #options: Required<ConnectionOptions>;
	readonly #agent: Agent;
	readonly #pieces = new Pieces();

	constructor(options: ConnectionOptions) {
		this.#options = {
			requestTimeoutMs: 30_000,
			idleTimeoutMs: 10_000,
			maxResponseBytes: 32 * 1024 * 1024,
			retryMs: [200, 5000],
			...options,
		};
		// For a connection in use, `timeout` only means that it is silent.
		this.#agent = new https.Agent({
			keepAlive: true,
			maxSockets: 16,
			maxFreeSockets: 2,
			timeout: this.#options.idleTimeoutMs,
		});
	}

	get maxResponseBytes(): number {
		return this.#options.maxResponseBytes;
	}

	/**
	 * The parsed answer. Retries when the server is busy, and after a failure unless the request may have created an
	 * object.
	 * @throws KubernetesError
	 */
	async request(request: ApiRequest, signal: AbortSignal): Promise<unknown> {
		return retry(
			async () => this.#exchange(request, signal),
			{
				backOff: this.#options.retryMs,
				leastPauseMs: retryAfterOf,
				onFailure(error, {attempt}) {
					if (attempt === attempts || !mayBeRetried(error, request)) {
						throw error;
					}
				},
			},
			signal,
		);
	}

	/**
	 * A streamed answer: resolves with its head; not retried.
	 * @param signal also ends the body: the caller must abort it when it needs no more, also after a failure
	 * @throws KubernetesError
	 */
	async stream(request: ApiRequest, signal: AbortSignal): Promise<IncomingMessage> {
		using head = new Scope(signal).deadline(this.#options.requestTimeoutMs, 'the Kubernetes API');
		return await abortable(this.#authenticated(request, signal), head.signal);
	}

	/** Ends all requests. */
	[Symbol.dispose](): void {
		this.#agent.destroy();
	}

	async #exchange(request: ApiRequest, signal: AbortSignal): Promise<unknown> {
		const {requestTimeoutMs, maxResponseBytes} = this.#options;
		using scope = new Scope(signal).deadline(requestTimeoutMs, 'the Kubernetes API');
		const where = {method: request.method, path: pathAlone(request)};
		const {bounds} = request;
		try {
			const response = await this.#authenticated(request, scope.signal);
			const body = await bodyOf(response, bounds?.bytes ?? maxResponseBytes);
			return await this.#pieces.run(() => parsed(body, bounds), scope.signal);
		} catch (error) {
			signal.throwIfAborted();
			if (error instanceof AdaptorError && !(error instanceof DeadlineError)) {
				throw error;
			}

			const isGarbage = error instanceof JsonError;
			const reason = toError(scope.signal.aborted ? scope.signal.reason : error);
			throw new KubernetesError({
				code: isGarbage ? 'data-loss' : 'unavailable',
				what: isGarbage
					? 'The answer of the Kubernetes API is not JSON'
					: `The Kubernetes API does not answer: ${reason.message}`,
				where,
				...(isGarbage ? {} : {cause: reason}),
				mayHaveBeenExecuted: true,
			});
		}
	}

	/**
	 * The head of an answer with a status below 400. If a token is rejected, its file is read again: it may have been
	 * replaced just now.
	 */
	async #authenticated(request: ApiRequest, signal: AbortSignal): Promise<IncomingMessage> {
		const where = {method: request.method, path: pathAlone(request)};
		let rejected: Awaited<ReturnType<ServiceAccount['credentials']>> | undefined;
		for (;;) {
			const credentials = await this.#options.account.credentials(rejected);
			const response = await this.#send(request, credentials.token.reveal(), credentials.ca, signal);
			const status = response.statusCode ?? 0;
			if (status < 400) {
				return response;
			}

			const error = refusal(
				status,
				(await bodyOf(response, this.#options.maxResponseBytes)).toString(),
				response.headers['retry-after'],
				where,
			);
			if (status !== 401 || rejected !== undefined) {
				throw error;
			}

			rejected = credentials;
		}
	}

	async #send(
		{method, path, body, contentType, accept = 'application/json'}: ApiRequest,
		token: string,
		ca: string,
		signal: AbortSignal,
	): Promise<IncomingMessage> {
		const {server} = this.#options;
		const text = body === undefined ? undefined : Buffer.from(JSON.stringify(body));
		const request = https.request({
			...server,
			method,
			path,
			signal,
			agent: this.#agent,
			// The agent separates connections by their CA: after a new CA, old connections are not used for new
			// requests.
			ca,
			headers: {
				authorization: `Bearer ${token}`,
				accept,
				'user-agent': 'cloud-api-adaptor',
				...(text === undefined
					? {}
					: {'content-type': contentType ?? 'application/json', 'content-length': text.length}),
			},
		});
		// Headers and body are sent right after the handshake. If an idle connection is closed when it is used again,
		// it is unknown whether the request arrived.
		const sent = {maybe: false};
		request.once('socket', socket => {
			sent.maybe = request.reusedSocket;
			if (!request.reusedSocket) {
				socket.once('secureConnect', () => {
					sent.maybe = true;
				});
			}
		});
		// Ignores errors after the answer arrived (its reader handles them) and errors after the caller has given up.
		request.on('error', () => undefined);
		request.end(text);
		try {
			const [response] = (await once(request, 'response')) as [IncomingMessage];
			return response;
		} catch (error) {
			signal.throwIfAborted();
			const reason = toError(error);
			throw new KubernetesError({
				code: 'unavailable',
				what: `The Kubernetes API cannot be reached: ${reason.message}`,
				where: {...server, method, path: pathAlone({path})},
				cause: reason,
				mayHaveBeenExecuted: sent.maybe,
			});
		}
	}
}

function pathAlone({path}: Pick<ApiRequest, 'path'>): string {
	return path.replace(/\?.*$/v, '');
}

function mayBeRetried(error: unknown, {method}: ApiRequest): boolean {
	if (!(error instanceof KubernetesError)) {
		return false;
	}

	if (error.status === undefined) {
		return error.code === 'unavailable' && (method !== 'POST' || !error.mayHaveBeenExecuted);
	}

	return error.status === 429 || (error.status >= 500 && method !== 'POST');
}

/** @throws KubernetesError 'data-loss' beyond the bounds; JsonError */
function parsed(body: Buffer, bounds: AnswerBounds | undefined): unknown {
	try {
		return parseJson(body, bounds);
	} catch (error) {
		if (bounds !== undefined && error instanceof JsonError && error.reason === 'too large') {
			throw tooLong(`${bounds.parts} values, or nested deeper than ${bounds.depth} levels`);
		}

		throw error;
	}
}

async function bodyOf(response: IncomingMessage, maxBytes: number): Promise<Buffer> {
	const chunks: Buffer[] = [];
	let bytes = 0;
	for await (const chunk of response as AsyncIterable<Buffer>) {
		bytes += chunk.length;
		if (bytes > maxBytes) {
			throw tooLong(`${maxBytes} bytes`);
		}

		chunks.push(chunk);
	}

	return Buffer.concat(chunks);
}

export function tooLong(limit: string): KubernetesError {
	return new KubernetesError({
		code: 'data-loss',
		what: `The answer of the Kubernetes API has more than ${limit}`,
		where: {},
	});
}

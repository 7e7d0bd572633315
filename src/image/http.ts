/**
 * HTTP for registries: follows redirects to blob storage without sending credentials there, supports proxies, and
 * limits silence. Addresses that come from a server, not from the operator, are never this machine or its link, and
 * never without TLS. Does not know registries. Uses the client of Node, because `fetch` follows redirects by its own
 * rules.
 */
import {Agent as HttpAgent, request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders} from 'node:http';
import {Agent as HttpsAgent, request as httpsRequest} from 'node:https';
import {isIPv4} from 'node:net';
import {getCACertificates} from 'node:tls';
import {AdaptorError, toError} from '../core/errors.ts';
import {prefixContains} from '../core/ipv4.ts';
import {abortable, DeadlineError, Scope} from '../core/lifetime.ts';
import {present} from '../core/present.ts';
import {guardedLookup, isLocalLiteral} from './local-addresses.ts';

export interface HttpOptions {
	/** PEM of additional trusted certificate authorities. */
	readonly ca?: readonly string[];
	/** HTTP_PROXY, HTTPS_PROXY, NO_PROXY, in upper or lower case; not used for this machine. */
	readonly proxyEnv: Readonly<Record<string, string | undefined>>;
	/** Hosts (with port, as in the URL) that are allowed without TLS. */
	readonly plainHosts: ReadonlySet<string>;
	/**
	 * Hosts (with port, as in the URL) that are allowed as redirect targets although they are this machine or
	 * link-local.
	 */
	readonly localHosts: ReadonlySet<string>;
	/** Time limit of silence of a server. */
	readonly silenceMs: number;
}

export interface Request {
	readonly url: URL;
	/**
	 * Whether the operator configured this origin: then any address is allowed. Origins that a server sends are
	 * restricted.
	 */
	readonly isNamed?: boolean;
	readonly method?: 'GET' | 'POST';
	readonly headers?: OutgoingHttpHeaders;
	readonly body?: string;
}

export interface HttpResponse {
	readonly status: number;
	readonly headers: IncomingMessage['headers'];
	/** The final URL, after redirects. */
	readonly url: URL;
	/**
	 * Call it once. Returning early ends the connection.
	 * @throws HttpError if the connection breaks or falls silent
	 */
	body(signal: AbortSignal): AsyncGenerator<Buffer, void, undefined>;
}

/** The exchange failed; a retry may succeed, unless `isFinal`. */
export class HttpError extends AdaptorError {
	override readonly name = 'HttpError';
	readonly isFinal: boolean;

	constructor(
		what: string,
		url: URL,
		{
			isFinal = false,
			remedy,
			cause,
		}: {readonly isFinal?: boolean; readonly remedy?: string; readonly cause?: unknown},
	) {
		super({
			code: isFinal ? 'failed-precondition' : 'unavailable',
			what,
			where: {host: url.host},
			...present({remedy, cause}),
		});
		this.isFinal = isFinal;
	}
}

const redirectsAtMost = 5;
const redirectStatuses = new Set([301, 302, 303, 307, 308]);
/** Handshake failures of a server without TLS. */
const noTlsCodes = new Set([
	'ERR_SSL_WRONG_VERSION_NUMBER',
	'ERR_SSL_PACKET_LENGTH_TOO_LONG',
	'ERR_SSL_HTTP_REQUEST',
	'EPROTO',
]);
/** Codes of Node for untrusted certificates. */
const certificateCode = /^(?:CERT_|ERR_TLS_CERT|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH|ERR_SSL_)/v;

interface Agents {
	readonly plain: HttpAgent;
	readonly tls: HttpsAgent;
}

export class HttpClient implements Disposable {
	readonly #options: HttpOptions;
	readonly #agents: Agents;
	/** For this machine: a proxy cannot reach it and must not see the requests. */
	readonly #direct: Agents;

	/** @throws AdaptorError 'invalid-argument' for an invalid proxy */
	constructor(options: HttpOptions) {
		this.#options = options;
		const agents = (proxyEnv: HttpOptions['proxyEnv']): Agents => ({
			plain: new HttpAgent({keepAlive: true, proxyEnv: {...proxyEnv}}),
			tls: new HttpsAgent({
				keepAlive: true,
				proxyEnv: {...proxyEnv},
				minVersion: 'TLSv1.2',
				...(options.ca === undefined ? {} : {ca: [...getCACertificates('default'), ...options.ca]}),
			}),
		});
		this.#agents = agents(proxiesOf(options.proxyEnv));
		this.#direct = agents({});
	}

	[Symbol.dispose](): void {
		for (const agent of [this.#agents, this.#direct].flatMap(({plain, tls}) => [plain, tls])) {
			agent.destroy();
		}
	}

	/** Whether a host that the operator named is allowed without TLS. */
	allowsPlain(url: URL): boolean {
		return isLoopback(url.hostname) || this.#options.plainHosts.has(url.host);
	}

	/**
	 * Follows redirects of a GET; `Authorization` is sent only to its own origin.
	 * @throws HttpError if there is no answer; an answer with any status is one
	 */
	async send(request: Request, signal: AbortSignal): Promise<HttpResponse> {
		const {plainHosts, localHosts} = this.#options;
		let {url, headers = {}} = request;
		for (let redirects = 0; ; redirects++) {
			const isNamed =
				(request.isNamed === true && url.origin === request.url.origin) ||
				plainHosts.has(url.host) ||
				localHosts.has(url.host);
			if (url.protocol !== 'https:' && !(url.protocol === 'http:' && isNamed && this.allowsPlain(url))) {
				throw new HttpError(`Could not fetch over ${url.protocol.slice(0, -1)}: only https is allowed`, url, {
					isFinal: true,
					remedy: 'If its traffic does not need protection, name the host in -plain-http.',
				});
			}

			const response = await this.#exchange({...request, url, headers, isNamed}, signal);
			const {location} = response.headers;
			if (
				!redirectStatuses.has(response.statusCode ?? 0) ||
				location === undefined ||
				(request.method ?? 'GET') !== 'GET'
			) {
				return this.#answer(response, url);
			}

			response.destroy();
			const next = URL.parse(location, url.href);
			if (next === null || redirects === redirectsAtMost) {
				throw new HttpError(
					next === null ? 'A redirect has no target' : `More than ${redirectsAtMost} redirects`,
					url,
					{isFinal: true},
				);
			}

			if (next.origin !== url.origin) {
				headers = Object.fromEntries(
					Object.entries(headers).filter(([name]) => name.toLowerCase() !== 'authorization'),
				);
			}

			url = next;
		}
	}

	async #exchange(
		{url, isNamed, method = 'GET', headers, body}: Request,
		signal: AbortSignal,
	): Promise<IncomingMessage> {
		if (isNamed !== true && isLocalLiteral(url.hostname)) {
			throw localRefusal(url);
		}

		const isTls = url.protocol === 'https:';
		const {promise, resolve, reject} = Promise.withResolvers<IncomingMessage>();
		using scope = new Scope(signal).deadline(this.#options.silenceMs, `an answer of ${url.host}`);
		const agents = isLoopback(url.hostname) ? this.#direct : this.#agents;
		const options = {
			method,
			headers: {'user-agent': 'cloud-api-adaptor', ...headers},
			agent: isTls ? agents.tls : agents.plain,
			...(isNamed === true ? {} : {lookup: guardedLookup(url.hostname, address => localRefusal(url, address))}),
		};
		const outgoing = isTls ? httpsRequest(url, options, resolve) : httpRequest(url, options, resolve);
		outgoing.on('error', reject);
		outgoing.end(body);
		try {
			return await abortable(promise, scope.signal);
		} catch (error) {
			outgoing.destroy();
			signal.throwIfAborted();
			throw error instanceof HttpError ? error : exchangeError(toError(error), url);
		}
	}

	#answer(response: IncomingMessage, url: URL): HttpResponse {
		const {silenceMs} = this.#options;
		return {
			status: response.statusCode ?? 0,
			headers: response.headers,
			url,
			async *body(signal) {
				const chunks = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
				try {
					for (;;) {
						using scope = new Scope(signal).deadline(silenceMs, `more data of ${url.host}`);
						const next = await abortable(chunks.next(), scope.signal);
						if (next.done === true) {
							return;
						}

						yield next.value;
					}
				} catch (error) {
					signal.throwIfAborted();
					throw new HttpError(
						`The connection broke in the middle of an answer: ${toError(error).message}`,
						url,
						{cause: error},
					);
				} finally {
					response.destroy();
				}
			},
		};
	}
}

/**
 * The whole body of a short answer.
 * @throws HttpError if it is longer
 */
export async function readAll(answer: HttpResponse, maxBytes: number, signal: AbortSignal): Promise<Buffer> {
	const chunks: Buffer[] = [];
	let length = 0;
	for await (const chunk of answer.body(signal)) {
		length += chunk.length;
		if (length > maxBytes) {
			throw new HttpError(`An answer has more than ${maxBytes} bytes`, answer.url, {isFinal: true});
		}

		chunks.push(chunk);
	}

	return Buffer.concat(chunks);
}

/** Whether the exchange failed because the other side has no TLS. */
export function isWithoutTls(error: unknown): boolean {
	return (
		error instanceof HttpError &&
		error.cause instanceof Error &&
		'code' in error.cause &&
		noTlsCodes.has(String(error.cause.code))
	);
}

export function isLoopback(hostname: string): boolean {
	return (
		hostname === 'localhost' ||
		hostname === '[::1]' ||
		(isIPv4(hostname) && prefixContains('127.0.0.0/8', hostname))
	);
}

/**
 * Parsed as in curl: without a scheme it is http. Node would ignore such a value, and would print an invalid one with
 * its password.
 */
function proxiesOf(env: HttpOptions['proxyEnv']): Record<string, string> {
	return Object.fromEntries(
		Object.entries(env).flatMap(([name, value = '']) => {
			if (value === '' || name.toUpperCase() === 'NO_PROXY') {
				return [[name, value]];
			}

			const text = value.includes('://') ? value : `http://${value}`;
			const url = URL.parse(text);
			if (
				url === null ||
				!['http:', 'https:'].includes(url.protocol) ||
				!isEncoded(url.username) ||
				!isEncoded(url.password)
			) {
				throw new AdaptorError({
					code: 'invalid-argument',
					what: `${name} is not the URL of an HTTP proxy`,
					remedy: 'Write http://[USER:PASSWORD@]HOST:PORT, and special characters in user and password as %XX.',
				});
			}

			return [[name, text]];
		}),
	);
}

function isEncoded(text: string): boolean {
	return !/%(?![0-9A-Fa-f]{2})/v.test(text);
}

function localRefusal(url: URL, address = url.hostname): HttpError {
	return new HttpError(
		`Could not follow a redirect of the registry to ${address}: it is a loopback or link-local address`,
		url,
		{
			isFinal: true,
			remedy: `If the registry is meant to lead there, name ${url.host} in -local-host.`,
		},
	);
}

function exchangeError(error: Error, url: URL): HttpError {
	const code = 'code' in error ? String(error.code) : '';
	if (certificateCode.test(code) && !noTlsCodes.has(code)) {
		return new HttpError(`The server's certificate is not trusted: ${error.message}`, url, {
			isFinal: true,
			remedy: 'Name a file with its certificate authority in -registry-ca.',
			cause: error,
		});
	}

	if (code === 'ENOTFOUND') {
		return new HttpError('There is no such host', url, {
			isFinal: true,
			remedy: 'Check the reference; behind a proxy, set HTTPS_PROXY.',
			cause: error,
		});
	}

	return new HttpError(
		error instanceof DeadlineError ? error.what : `Could not reach the server: ${error.message}`,
		url,
		{
			remedy: 'Check the host and port of the reference, and the firewalls between this machine and the server; behind a proxy, set HTTPS_PROXY.',
			cause: error,
		},
	);
}

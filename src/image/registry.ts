/**
 * One repository of a registry: its manifests and blobs over the OCI distribution protocol (OCI distribution-spec,
 * "Pull"; token authentication: distribution, docs/spec/auth/token). All content is verified by its digest.
 */
import {createHash, type Hash} from 'node:crypto';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {backOff, pause, Scope} from '../core/lifetime.ts';
import {Secret} from '../core/log.ts';
import type {Credentials} from './credentials.ts';
import {HttpClient, HttpError, isWithoutTls, readAll, type HttpResponse} from './http.ts';
import {at, listAt, parseJsonOrNothing, textAt} from '../core/json.ts';
import {present} from '../core/present.ts';
import {
	checkPlatform,
	chooseOf,
	configOf,
	damaged,
	layersOf,
	manifestTypes,
	parseDocument,
	type Descriptor,
	type ImageManifest,
	type Platform,
} from './manifest.ts';
import {digestPattern, formatReference, type ImageReference} from './reference.ts';

/** The limit of distribution for a manifest. Configurations are smaller. */
const maxManifestBytes = 4 * 1024 * 1024;
const maxTokenBytes = 1024 * 1024;
const maxErrorBytes = 16 * 1024;
/**
 * Time limit for a token, a manifest or a configuration with all retries: a server that sends a byte per minute is
 * never silent.
 */
const documentTimeoutMs = 120_000;
/** A transfer ends after this number of consecutive failures without a new byte. */
const attemptsAtMost = 5;

export class Registry {
	readonly #http: HttpClient;
	readonly #reference: ImageReference;
	readonly #credentials: Credentials | undefined;
	readonly #retryMs: {readonly first: number; readonly longest: number};
	readonly #documentMs: number;
	/** The header of the last successful authentication. */
	#authorization: Secret<string> | undefined;
	/** Known after the first answer. */
	#protocol: 'https:' | 'http:' | undefined;

	/** @param documentMs time limit for a small document */
	constructor(
		http: HttpClient,
		reference: ImageReference,
		credentials: Credentials | undefined,
		retryMs = {first: 500, longest: 10_000},
		documentMs = documentTimeoutMs,
	) {
		this.#http = http;
		this.#reference = reference;
		this.#credentials = credentials;
		this.#retryMs = retryMs;
		this.#documentMs = documentMs;
	}

	/**
	 * The manifest of the reference; from a list, the one for the platform, or the only one if it names no platform.
	 * @throws AdaptorError 'not-found', 'unauthenticated', 'permission-denied', 'failed-precondition' for an image of
	 * another platform, 'data-loss' for a wrong digest
	 */
	async manifest(platform: Platform, signal: AbortSignal): Promise<ImageManifest> {
		const {version} = this.#reference;
		let wanted = 'tag' in version ? version.tag : version.digest;
		// A list of lists is allowed, but has no use.
		for (let depth = 0; depth < 3; depth++) {
			const {content, digest} = await this.#readManifest(wanted, signal);
			const list = at(content, 'manifests');
			if (!Array.isArray(list)) {
				const layers = layersOf(content, this.#where);
				checkPlatform(await this.#readConfig(configOf(content, this.#where), signal), platform, this.#where);
				return {digest, layers};
			}

			wanted = chooseOf(list, platform, this.#where);
		}

		throw damaged('the manifest list contains only lists', this.#where);
	}

	/**
	 * The bytes of the blob. An interrupted transfer continues at its position; each byte comes once, in order.
	 * @throws AdaptorError 'data-loss' at the end for a wrong size or digest: the caller must discard the result
	 */
	async *blob({digest, size}: Descriptor, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		const hash = hashFor(digest);
		const retries = backOff(this.#retryMs.first, this.#retryMs.longest);
		let received = 0;
		for (let attempt = 1; received < size;) {
			try {
				for await (const chunk of this.#blobFrom(digest, received, signal)) {
					received += chunk.length;
					if (received > size) {
						throw damaged(`a blob has more than its ${size} bytes`, {...this.#where, digest});
					}

					hash.update(chunk);
					attempt = 1;
					yield chunk;
				}

				if (received < size) {
					throw new HttpError(`A blob ended after ${received} of ${size} bytes`, this.#url(''), {});
				}
			} catch (error) {
				if (!(error instanceof HttpError) || error.isFinal || attempt++ === attemptsAtMost) {
					throw error;
				}

				await pause(retries.next().value, signal);
			}
		}

		if (`${digest.slice(0, digest.indexOf(':'))}:${hash.digest('hex')}` !== digest) {
			throw damaged('the content of a blob does not match its digest', {...this.#where, digest});
		}
	}

	async *#blobFrom(digest: string, offset: number, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		const answer = await this.#get(`blobs/${digest}`, offset === 0 ? {} : {range: `bytes=${offset}-`}, signal);
		// A server that ignores the range sends everything again.
		let skip = offset;
		if (answer.status === 206) {
			const [, start] = /^bytes (\d+)-/v.exec(answer.headers['content-range'] ?? '') ?? [];
			if (Number(start) !== offset) {
				throw new HttpError('The registry sent a different part of a blob than requested', answer.url, {
					isFinal: true,
				});
			}

			skip = 0;
		}

		for await (const chunk of answer.body(signal)) {
			const skipped = Math.min(skip, chunk.length);
			skip -= skipped;
			if (skipped < chunk.length) {
				yield chunk.subarray(skipped);
			}
		}
	}

	async #readManifest(version: string, signal: AbortSignal): Promise<{content: unknown; digest: string}> {
		const accept = manifestTypes.join(', ');
		const bytes = await this.#inTime('the manifest', signal, async inTime =>
			this.#retried(
				async () =>
					readAll(await this.#get(`manifests/${version}`, {accept}, inTime), maxManifestBytes, inTime),
				inTime,
			),
		);
		if (
			digestPattern.test(version) &&
			`${version.slice(0, version.indexOf(':'))}:${hashFor(version).update(bytes).digest('hex')}` !== version
		) {
			throw damaged('the content of a manifest does not match its digest', {...this.#where, digest: version});
		}

		return {
			content: parseDocument(bytes, 'the manifest', this.#where),
			digest: digestPattern.test(version)
				? version
				: `sha256:${createHash('sha256').update(bytes).digest('hex')}`,
		};
	}

	async #readConfig(descriptor: Descriptor, signal: AbortSignal): Promise<unknown> {
		if (descriptor.size > maxManifestBytes) {
			throw damaged(`its configuration has more than ${maxManifestBytes} bytes`, this.#where);
		}

		const chunks: Buffer[] = [];
		await this.#inTime('the configuration', signal, async inTime => {
			for await (const chunk of this.blob(descriptor, inTime)) {
				chunks.push(chunk);
			}
		});
		return parseDocument(Buffer.concat(chunks), 'the configuration', this.#where);
	}

	/** @throws HttpError if the work has not ended after `documentMs` */
	async #inTime<T>(awaited: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
		using scope = new Scope(signal).deadline(this.#documentMs, awaited);
		try {
			return await work(scope.signal);
		} catch (error) {
			signal.throwIfAborted();
			throw scope.signal.aborted
				? new HttpError(
						`The registry took more than ${this.#documentMs / 1000} s to send ${awaited}`,
						this.#url(''),
						{isFinal: true, remedy: "Push again later, or look at the registry's own log.", cause: error},
					)
				: error;
		}
	}

	async #retried<T>(attempt: () => Promise<T>, signal: AbortSignal): Promise<T> {
		return retry(
			attempt,
			{
				backOff: [this.#retryMs.first, this.#retryMs.longest],
				onFailure(error, {attempt: number}) {
					if (!(error instanceof HttpError) || error.isFinal || number === attemptsAtMost) {
						throw error;
					}
				},
			},
			signal,
		);
	}

	/** An answer with content. Authenticates if the registry requests it. */
	async #get(path: string, headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<HttpResponse> {
		for (let hasAuthenticated = false; ; hasAuthenticated = true) {
			const answer = await this.#send(
				path,
				{
					...headers,
					...present({authorization: this.#authorization?.reveal()}),
				},
				signal,
			);
			if (answer.status === 200 || answer.status === 206) {
				return answer;
			}

			const text = await this.#inTime('its refusal', signal, async inTime =>
				readAll(answer, maxErrorBytes, inTime),
			).catch(() => Buffer.alloc(0));
			signal.throwIfAborted();
			// Credentials are not sent to the target of a redirect.
			if (answer.status !== 401 || hasAuthenticated || answer.url.host !== this.#url('').host) {
				throw refusal(answer, text, this.#credentials !== undefined, this.#where);
			}

			this.#authorization = await this.#authenticate(answer, signal);
		}
	}

	/** Over https; without TLS only if that is allowed for the registry. */
	async #send(path: string, headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<HttpResponse> {
		try {
			const answer = await this.#http.send({url: this.#url(path), isNamed: true, headers}, signal);
			this.#protocol ??= 'https:';
			return answer;
		} catch (error) {
			if (this.#protocol !== undefined || !isWithoutTls(error)) {
				throw error;
			}

			if (!this.#http.allowsPlain(this.#url(path))) {
				throw new HttpError('The registry does not use TLS', this.#url(path), {
					isFinal: true,
					remedy: 'If its traffic does not need protection, name it in -plain-http.',
					cause: error,
				});
			}
		}

		this.#protocol = 'http:';
		return this.#http.send({url: this.#url(path), isNamed: true, headers}, signal);
	}

	async #authenticate(answer: HttpResponse, signal: AbortSignal): Promise<Secret<string>> {
		const challenges = parseChallenges(answer.headers['www-authenticate'] ?? '');
		const bearer = challenges.get('bearer');
		if (bearer !== undefined) {
			return new Secret(`Bearer ${(await this.#token(bearer, answer.url, signal)).reveal()}`);
		}

		if (challenges.has('basic') && this.#credentials !== undefined && 'user' in this.#credentials) {
			return basic(this.#credentials);
		}

		throw refusal(answer, Buffer.alloc(0), this.#credentials !== undefined, this.#where);
	}

	async #token(challenge: ReadonlyMap<string, string>, asked: URL, signal: AbortSignal): Promise<Secret<string>> {
		const url = URL.parse(challenge.get('realm') ?? '');
		if (url === null) {
			throw new HttpError('The registry requires a token but names no token server', asked, {isFinal: true});
		}

		const {repository} = this.#reference;
		const parameters = {
			service: challenge.get('service') ?? '',
			scope: challenge.get('scope') ?? `repository:${repository}:pull`,
		};
		// Many registries issue their own tokens. Any other token server was named by the registry, so its address is
		// restricted.
		const isNamed = url.origin === this.#url('').origin;
		const [answer, body] = await this.#inTime('a token', signal, async inTime =>
			this.#retried(async () => {
				const received = await this.#askToken({url, isNamed}, parameters, inTime);
				return [received, await readAll(received, maxTokenBytes, inTime)] as const;
			}, inTime),
		);
		if (answer.status !== 200) {
			throw refusal(answer, body, this.#credentials !== undefined, this.#where);
		}

		const content = parseDocument(body, 'the answer with a token', this.#where);
		const token = at(content, 'token') ?? at(content, 'access_token');
		if (typeof token !== 'string' || !/^[\x21-\x7e]+$/v.test(token)) {
			throw new HttpError('The answer of the token server contains no token', answer.url, {isFinal: true});
		}

		return new Secret(token);
	}

	async #askToken(
		{url, isNamed}: {readonly url: URL; readonly isNamed: boolean},
		parameters: Readonly<Record<string, string>>,
		signal: AbortSignal,
	): Promise<HttpResponse> {
		const credentials = this.#credentials;
		if (credentials !== undefined && 'identityToken' in credentials) {
			const form = new URLSearchParams({
				...parameters,
				grant_type: 'refresh_token',
				client_id: 'cloud-api-adaptor',
				refresh_token: credentials.identityToken.reveal(),
			});
			return this.#http.send(
				{
					url,
					isNamed,
					method: 'POST',
					headers: {'content-type': 'application/x-www-form-urlencoded'},
					body: form.toString(),
				},
				signal,
			);
		}

		const query = new URL(url);
		for (const [name, value] of Object.entries(parameters)) {
			query.searchParams.set(name, value);
		}

		return this.#http.send(
			{
				url: query,
				isNamed,
				headers: credentials === undefined ? {} : {authorization: basic(credentials).reveal()},
			},
			signal,
		);
	}

	#url(path: string): URL {
		const {registry, repository} = this.#reference;
		return new URL(
			`${this.#protocol ?? 'https:'}//${registry === 'docker.io' ? 'registry-1.docker.io' : registry}/v2/${repository}/${path}`,
		);
	}

	get #where(): Readonly<Record<string, string>> {
		return {image: formatReference(this.#reference)};
	}
}

/**
 * The challenges of WWW-Authenticate by their scheme in lower case, with their parameters.
 * Source: RFC 9110, section 11.6.1; exported for tests.
 */
export function parseChallenges(header: string): ReadonlyMap<string, ReadonlyMap<string, string>> {
	const challenges = new Map<string, Map<string, string>>();
	let parameters: Map<string, string> | undefined;
	for (const [, scheme, name, quoted, bare] of header.matchAll(
		/([\w\-]+)(?=\s+[\w\-]+\s*=|\s*(?:,|$))(?!\s*=)|([\w\-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))/gv,
	)) {
		if (scheme !== undefined) {
			parameters = new Map();
			challenges.set(scheme.toLowerCase(), parameters);
		} else if (name !== undefined) {
			parameters?.set(name.toLowerCase(), quoted?.replaceAll(/\\(.)/gsv, '$1') ?? bare ?? '');
		}
	}

	return challenges;
}

function basic(credentials: Extract<Credentials, {user: string}>): Secret<string> {
	return new Secret(
		`Basic ${Buffer.from(`${credentials.user}:${credentials.password.reveal()}`).toString('base64')}`,
	);
}

function hashFor(digest: string): Hash {
	return createHash(digest.startsWith('sha512:') ? 'sha512' : 'sha256');
}

/** Error codes of the protocol ("Error Codes"), a fixed list of words. */
function refusal(
	{status, url}: HttpResponse,
	body: Buffer,
	hadCredentials: boolean,
	where: Readonly<Record<string, string>>,
): AdaptorError {
	if (status === 401 || status === 403) {
		return new AdaptorError({
			code: status === 401 ? 'unauthenticated' : 'permission-denied',
			what: hadCredentials
				? 'The registry does not accept the credentials for this image'
				: 'The registry wants credentials for this image',
			where: {...where, host: url.host, status},
			remedy: 'Log in to it with "podman login" or name a file with credentials in REGISTRY_AUTH_FILE.',
		});
	}

	if (status === 404) {
		return new AdaptorError({
			code: 'not-found',
			what: 'The registry has no such image, tag or blob',
			where: {...where, host: url.host},
			remedy: 'Check the reference.',
		});
	}

	// Other answers have no error code; their status suffices.
	const words = listAt(parseJsonOrNothing(body), 'errors')
		.map(error => textAt(error, 'code') ?? '')
		.filter(code => /^[A-Z_]{1,40}$/v.test(code))
		.join(', ');
	// Temporary: too many requests, and errors of the server.
	const mayPass = status === 429 || status >= 500;
	const remedy = mayPass
		? 'The request was repeated several times. Push again later, or check the log of the registry.'
		: 'Check the reference, and check that its host is a registry.';
	return new HttpError(`The registry answered status ${status}${words === '' ? '' : ` (${words})`}`, url, {
		isFinal: !mayPass,
		remedy,
	});
}

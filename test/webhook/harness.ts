/** A webhook's certificate directory as kubelet makes it, and clients that speak to it as an API server does. */
import {mkdir, rename, rm, symlink, writeFile} from 'node:fs/promises';
import {Agent, request} from 'node:https';
import type {IncomingHttpHeaders} from 'node:http';
import {join} from 'node:path';
import {text} from 'node:stream/consumers';
import {TLSSocket} from 'node:tls';
import type {ExecutionContext} from 'ava';
import {startWebhook, type Webhook, type WebhookOptions} from '../../src/webhook/server.ts';
import {makeCa, makeServerCertificate, type KeyPair} from '../../src/relay/certificates.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';
import {policy} from './pods.ts';

export const serverName = 'peerpods-webhook.openshift-sandboxed-containers-operator.svc';

export interface Issuer {
	readonly ca: string;
	issue(): Promise<KeyPair>;
}

export async function makeIssuer(): Promise<Issuer> {
	const validity = {notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 3_600_000)};
	const ca = await makeCa('test', validity);
	return {ca: ca.cert, issue: async () => makeServerCertificate(serverName, ca, validity)};
}

/**
 * A mounted secret: files are links into `..data`, a link that is swapped in one step (Kubernetes,
 * pkg/volume/util/atomic_writer.go).
 */
export class MountedSecret {
	readonly directory: string;
	#version = 0;

	constructor(directory: string) {
		this.directory = directory;
	}

	async write({cert, key}: KeyPair): Promise<void> {
		const old = `..version_${this.#version}`;
		this.#version += 1;
		const version = `..version_${this.#version}`;
		await mkdir(join(this.directory, version), {recursive: true});
		await writeFile(join(this.directory, version, 'tls.crt'), cert);
		await writeFile(join(this.directory, version, 'tls.key'), key.reveal());
		await symlink(version, join(this.directory, '..data_tmp'));
		await rename(join(this.directory, '..data_tmp'), join(this.directory, '..data'));
		if (this.#version === 1) {
			await Promise.all(
				['tls.crt', 'tls.key'].map(async name => symlink(join('..data', name), join(this.directory, name))),
			);
		}

		await rm(join(this.directory, old), {recursive: true, force: true});
	}
}

export interface Running {
	readonly webhook: Webhook;
	readonly log: ReturnType<typeof recordingLog>;
	readonly issuer: Issuer;
	readonly secret: MountedSecret;
	readonly client: Client;
}

/** On ports of its own, with a client that trusts it. */
export async function webhookOf(t: ExecutionContext, options: Partial<WebhookOptions> = {}): Promise<Running> {
	const issuer = await makeIssuer();
	const secret = new MountedSecret(join(await directoryOf(t), 'certs'));
	await secret.write(await issuer.issue());
	const log = recordingLog();
	const webhook = await startWebhook({
		port: 0,
		probePort: 0,
		tlsDirectory: secret.directory,
		tls: {},
		tlsIntervalMs: 10,
		drainDelayMs: 0,
		// Tests of time limits set their own: on a machine under load, others must not meet one.
		requestTimeoutMs: 300_000,
		policy,
		log,
		...options,
	});
	const client = new Client(webhook.port, issuer.ca);
	t.teardown(async () => {
		client.close();
		await webhook[Symbol.asyncDispose]();
	});
	return {webhook, log, issuer, secret, client};
}

export interface Reply {
	readonly status: number;
	readonly headers: IncomingHttpHeaders;
	readonly body: string;
	/** Of the certificate that the server showed. */
	readonly fingerprint: string;
}

export interface Call {
	readonly method?: string;
	readonly path?: string;
	readonly headers?: Readonly<Record<string, string>>;
	readonly body?: string | Buffer;
}

/** Keeps its connections, as the API server does. */
export class Client {
	readonly agent: Agent;
	readonly #port: number;

	constructor(
		port: number,
		ca: string,
		options: {
			readonly maxSockets?: number;
			readonly keepAlive?: boolean;
			readonly maxVersion?: 'TLSv1.2';
			readonly cert?: string;
			readonly key?: string;
		} = {},
	) {
		this.#port = port;
		this.agent = new Agent({keepAlive: true, ca, servername: serverName, maxCachedSessions: 0, ...options});
	}

	async call({method = 'POST', path = '/mutate-v1-pod', headers = {}, body}: Call): Promise<Reply> {
		const {promise, resolve, reject} = Promise.withResolvers<Reply>();
		const asked = request(
			{
				host: '127.0.0.1',
				port: this.#port,
				agent: this.agent,
				method,
				path: `${path}?timeout=10s`,
				headers: {'Content-Type': 'application/json', ...headers},
			},
			response => {
				const fingerprint256 =
					response.socket instanceof TLSSocket ? response.socket.getPeerCertificate().fingerprint256 : '';
				text(response).then(
					received =>
						resolve({
							status: response.statusCode ?? 0,
							headers: response.headers,
							body: received,
							fingerprint: fingerprint256,
						}),
					reject,
				);
			},
		);
		asked.on('error', reject);
		asked.end(body);
		return promise;
	}

	/** @returns the answer's body, parsed */
	async review(document: unknown): Promise<unknown> {
		const {status, body} = await this.call({body: JSON.stringify(document)});
		if (status !== 200) {
			throw new Error(`${status} ${body}`);
		}

		return JSON.parse(body);
	}

	close(): void {
		this.agent.destroy();
	}
}

/**
 * Until it is true, looking each time that something may have happened.
 * @throws when that takes longer than anything here should
 */
export async function until(isTrue: () => boolean | Promise<boolean>): Promise<void> {
	const giveUpAt = performance.now() + 60_000;
	while (!(await isTrue())) {
		if (performance.now() > giveUpAt) {
			throw new Error(`Timed out waiting for ${String(isTrue)}`);
		}

		await new Promise(resolve => setImmediate(resolve));
	}
}

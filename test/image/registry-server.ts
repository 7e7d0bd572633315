/**
 * A real registry (Debian's docker-registry) on loopback, and what a registry of somebody else's has around it:
 * certificates, a token server, a front that misbehaves.
 */
import {execFileSync, spawn} from 'node:child_process';
import {createHash, createSign, randomBytes, X509Certificate} from 'node:crypto';
import {once} from 'node:events';
import {mkdtemp, readFile, rm, writeFile} from 'node:fs/promises';
import {createServer, request, type IncomingMessage, type Server, type ServerResponse} from 'node:http';
import {createServer as createTlsServer} from 'node:https';
import type {AddressInfo} from 'node:net';
import {tmpdir} from 'node:os';
import {createInterface} from 'node:readline';
import {HttpClient} from '../../src/image/http.ts';
import {parseImageReference} from '../../src/image/reference.ts';
import {Registry} from '../../src/image/registry.ts';
import type {Credentials} from '../../src/image/credentials.ts';

export interface Certificate {
	/** PEM; signs itself. */
	readonly cert: string;
	readonly key: string;
	readonly certPath: string;
	readonly keyPath: string;
}

export interface RegistryOptions {
	/** Of another registry whose images it serves too. */
	readonly root?: string;
	/** Content of a file for htpasswd authentication. */
	readonly htpasswd?: string;
	readonly token?: {readonly realm: string; readonly certPath: string};
	readonly tls?: Certificate;
}

export interface TestRegistry extends AsyncDisposable {
	/** `127.0.0.1:PORT` */
	readonly host: string;
	readonly root: string;
}

export async function startRegistry({root, htpasswd, token, tls}: RegistryOptions = {}): Promise<TestRegistry> {
	const directory = await mkdtemp(`${tmpdir()}/caat-registry-`);
	const storage = root ?? `${directory}/data`;
	await writeFile(`${directory}/htpasswd`, htpasswd ?? '');
	const lines = [
		'version: 0.1',
		'log: {level: info, accesslog: {disabled: true}}',
		`storage: {filesystem: {rootdirectory: ${storage}}}`,
		`http: {addr: "127.0.0.1:0"${tls === undefined ? '' : `, tls: {certificate: ${tls.certPath}, key: ${tls.keyPath}}`}}`,
		...(htpasswd === undefined ? [] : [`auth: {htpasswd: {realm: test, path: ${directory}/htpasswd}}`]),
		...(token === undefined
			? []
			: [
					`auth: {token: {realm: "${token.realm}", service: registry, issuer: test, rootcertbundle: ${token.certPath}}}`,
				]),
	];
	await writeFile(`${directory}/config.yml`, `${lines.join('\n')}\n`);
	const child = spawn('setpriv', ['--pdeathsig', 'KILL', 'docker-registry', 'serve', `${directory}/config.yml`], {
		stdio: ['ignore', 'ignore', 'pipe'],
		env: {PATH: process.env['PATH'], OTEL_TRACES_EXPORTER: 'none'},
	});
	const exited = once(child, 'exit');
	const close = async (): Promise<void> => {
		child.kill('SIGKILL');
		await exited;
		await rm(directory, {recursive: true, force: true});
	};
	let text = '';
	for await (const line of createInterface({input: child.stderr})) {
		text += `${line}\n`;
		const [, host] = /listening on (127\.0\.0\.1:\d+)/v.exec(line) ?? [];
		if (host !== undefined) {
			child.stderr.resume();
			return {host, root: storage, [Symbol.asyncDispose]: close};
		}
	}

	await close();
	throw new Error(`docker-registry did not start; is the Debian package docker-registry installed?\n${text}`);
}

export function digestOf(content: Buffer | string): string {
	return `sha256:${createHash('sha256').update(content).digest('hex')}`;
}

/** To a registry without authentication. @returns the manifest's digest */
export async function pushImage(
	host: string,
	repository: string,
	tag: string,
	layers: readonly Buffer[],
	{
		schema = 'oci',
		platform = {os: 'linux', architecture: 's390x'},
	}: {readonly schema?: 'oci' | 'docker'; readonly platform?: object} = {},
): Promise<string> {
	const config = Buffer.from(JSON.stringify({...platform, rootfs: {type: 'layers', diff_ids: []}}));
	for (const blob of [config, ...layers]) {
		await pushBlob(host, repository, blob);
	}

	const [manifestType, configType, layerType] =
		schema === 'oci'
			? [
					'application/vnd.oci.image.manifest.v1+json',
					'application/vnd.oci.image.config.v1+json',
					'application/vnd.oci.image.layer.v1.tar+gzip',
				]
			: [
					'application/vnd.docker.distribution.manifest.v2+json',
					'application/vnd.docker.container.image.v1+json',
					'application/vnd.docker.image.rootfs.diff.tar.gzip',
				];
	const descriptor = (mediaType: string, blob: Buffer): object => ({
		mediaType,
		digest: digestOf(blob),
		size: blob.length,
	});
	return putManifest(host, repository, tag, manifestType, {
		schemaVersion: 2,
		mediaType: manifestType,
		config: descriptor(configType, config),
		layers: layers.map(layer => descriptor(layerType, layer)),
	});
}

/** @param platforms by the digests of manifests that are there */
export async function pushList(
	host: string,
	repository: string,
	tag: string,
	platforms: ReadonlyArray<readonly [digest: string, platform: string]>,
): Promise<string> {
	const mediaType = 'application/vnd.oci.image.index.v1+json';
	return putManifest(host, repository, tag, mediaType, {
		schemaVersion: 2,
		mediaType,
		manifests: platforms.map(([digest, platform]) => {
			const [os, architecture] = platform.split('/');
			return {
				mediaType: 'application/vnd.oci.image.manifest.v1+json',
				digest,
				size: 100,
				platform: {os, architecture},
			};
		}),
	});
}

export async function pushBlob(host: string, repository: string, blob: Buffer): Promise<void> {
	const begun = await fetch(`http://${host}/v2/${repository}/blobs/uploads/`, {method: 'POST'});
	const location = new URL(begun.headers.get('location') ?? '', `http://${host}`);
	location.searchParams.set('digest', digestOf(blob));
	await expectCreated(
		await fetch(location, {
			method: 'PUT',
			body: new Uint8Array(blob),
			headers: {'content-type': 'application/octet-stream'},
		}),
	);
}

export async function putManifest(
	host: string,
	repository: string,
	tag: string,
	type: string,
	manifest: object,
): Promise<string> {
	const body = JSON.stringify(manifest);
	await expectCreated(
		await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, {
			method: 'PUT',
			body,
			headers: {'content-type': type},
		}),
	);
	return digestOf(body);
}

async function expectCreated(answer: Response): Promise<void> {
	if (answer.status !== 201) {
		throw new Error(`The registry answered ${answer.status}: ${await answer.text()}`);
	}
}

/** For 127.0.0.1, localhost, and 0.0.0.0. */
export async function makeCertificate(): Promise<Certificate & AsyncDisposable> {
	const directory = await mkdtemp(`${tmpdir()}/caat-certificate-`);
	const [certPath, keyPath] = [`${directory}/cert.pem`, `${directory}/key.pem`];
	execFileSync(
		'openssl',
		[
			'req',
			'-x509',
			'-newkey',
			'ec',
			'-pkeyopt',
			'ec_paramgen_curve:P-256',
			'-nodes',
			'-days',
			'2',
			'-subj',
			'/CN=test',
			'-addext',
			'subjectAltName=IP:127.0.0.1,IP:0.0.0.0,DNS:localhost',
			'-keyout',
			keyPath,
			'-out',
			certPath,
		],
		{stdio: 'ignore'},
	);
	const [cert, key] = await Promise.all([readFile(certPath, 'utf8'), readFile(keyPath, 'utf8')]);
	return {
		cert,
		key,
		certPath,
		keyPath,
		[Symbol.asyncDispose]: async () => rm(directory, {recursive: true, force: true}),
	};
}

export interface TestServer extends AsyncDisposable {
	/** With scheme. */
	readonly origin: string;
	readonly host: string;
	readonly requests: readonly IncomingMessage[];
}

export async function serve(
	handle: (incoming: IncomingMessage, response: ServerResponse) => void,
	tls?: Certificate,
): Promise<TestServer> {
	const requests: IncomingMessage[] = [];
	const listener = (incoming: IncomingMessage, response: ServerResponse): void => {
		requests.push(incoming);
		handle(incoming, response);
	};
	const server: Server =
		tls === undefined ? createServer(listener) : createTlsServer({cert: tls.cert, key: tls.key}, listener);
	server.listen(0, '127.0.0.1');
	await once(server, 'listening');
	const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
	return {
		origin: `${tls === undefined ? 'http' : 'https'}://${host}`,
		host,
		requests,
		async [Symbol.asyncDispose]() {
			server.closeAllConnections();
			server.close();
			await once(server, 'close');
		},
	};
}

/** Hands a request to the registry, and its answer back, piece by piece as `transform` lets it through. */
export function forward(
	host: string,
	incoming: IncomingMessage,
	response: ServerResponse,
	transform?: (sent: number, chunk: Buffer) => Buffer | undefined,
): void {
	const outgoing = request(
		`http://${host}${incoming.url ?? ''}`,
		{method: incoming.method, headers: {...incoming.headers, host}},
		answer => {
			response.writeHead(answer.statusCode ?? 500, answer.headers);
			let sent = 0;
			answer.on('data', (chunk: Buffer) => {
				const part = transform === undefined ? chunk : transform(sent, chunk);
				sent += chunk.length;
				if (part === undefined) {
					answer.destroy();
					response.destroy();
				} else {
					response.write(part);
				}
			});
			answer.on('end', () => response.end());
		},
	);
	outgoing.on('error', () => response.destroy());
	incoming.pipe(outgoing);
}

/** distribution, docs/spec/auth/jwt: the key's certificate comes along (`x5c`). */
export function tokenFor(repository: string, {cert, key}: Certificate): string {
	const part = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url');
	const now = Math.floor(Date.now() / 1000);
	const head = part({typ: 'JWT', alg: 'ES256', x5c: [new X509Certificate(cert).raw.toString('base64')]});
	const claims = part({
		iss: 'test',
		sub: 'puller',
		aud: 'registry',
		exp: now + 300,
		nbf: now - 60,
		iat: now,
		jti: randomBytes(8).toString('hex'),
		access: [{type: 'repository', name: repository, actions: ['pull']}],
	});
	const signature = createSign('SHA256')
		.update(`${head}.${claims}`)
		.sign({key, dsaEncoding: 'ieee-p1363'})
		.toString('base64url');
	return `${head}.${claims}.${signature}`;
}

export function registryFor(
	reference: string,
	{
		credentials,
		ca,
		proxyEnv = {},
		plainHosts = [],
		localHosts = [],
		silenceMs = 100_000,
		documentMs,
	}: {
		readonly credentials?: Credentials;
		readonly ca?: string;
		readonly proxyEnv?: Readonly<Record<string, string>>;
		readonly plainHosts?: readonly string[];
		readonly localHosts?: readonly string[];
		readonly silenceMs?: number;
		readonly documentMs?: number;
	} = {},
): Registry & Disposable {
	const http = new HttpClient({
		...(ca === undefined ? {} : {ca: [ca]}),
		proxyEnv,
		plainHosts: new Set(plainHosts),
		localHosts: new Set(localHosts),
		silenceMs,
	});
	return Object.assign(
		new Registry(http, parseImageReference(reference), credentials, {first: 1, longest: 5}, documentMs),
		{[Symbol.dispose]: () => http[Symbol.dispose]()},
	);
}

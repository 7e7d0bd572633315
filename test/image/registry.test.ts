import {randomBytes} from 'node:crypto';
import {once} from 'node:events';
import {createServer, type ServerResponse} from 'node:http';
import {connect, type AddressInfo, type Socket} from 'node:net';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {HttpError} from '../../src/image/http.ts';
import type {Descriptor} from '../../src/image/manifest.ts';
import {parseChallenges, type Registry} from '../../src/image/registry.ts';
import {Secret} from '../../src/core/log.ts';
import {
	digestOf,
	forward,
	makeCertificate,
	pushImage,
	pushList,
	registryFor,
	serve,
	startRegistry,
	tokenFor,
	type TestRegistry,
} from './registry-server.ts';
import {never} from './storage.ts';

const platform = {os: 'linux', architecture: 's390x'};
const layers = [randomBytes(1000), randomBytes(700_000)] as const;
const [, large] = layers;
const blob: Descriptor = {digest: digestOf(large), size: large.length};
/** The password is "secret"; bcrypt, as `htpasswd -B` writes it. */
const htpasswd = 'puller:$2b$04$ckHXL576/PaW0.hj.00N7OZ25UANx4Cwmw3G64nVR5FMK6.Gc3v2i\n';
const puller = {user: 'puller', password: new Secret('secret')};

let registry: TestRegistry;
let digest: string;

test.before(async () => {
	registry = await startRegistry();
	digest = await pushImage(registry.host, 'org/podvm', 'one', layers);
	await pushImage(registry.host, 'org/podvm', 'docker', layers, {schema: 'docker'});
	const other = await pushImage(registry.host, 'org/podvm', 'other', [layers[0]]);
	await pushList(registry.host, 'org/podvm', 'list', [
		[other, 'linux/amd64'],
		[digest, 'linux/s390x'],
	]);
	await pushList(registry.host, 'org/podvm', 'single', [
		[digest, 'linux/amd64'],
		[other, 'unknown/unknown'],
	]);
	await pushList(registry.host, 'org/podvm', 'unlabelled', [[digest, 'unknown/unknown']]);
	const amd64 = await pushImage(registry.host, 'org/podvm', 'amd64', layers, {
		platform: {os: 'linux', architecture: 'amd64'},
	});
	await pushList(registry.host, 'org/podvm', 'mislabelled', [[amd64, 'linux/s390x']]);
	await pushImage(registry.host, 'org/podvm', 'artifact', layers, {platform: {}});
	await pushList(registry.host, 'org/podvm', 'foreign', [
		[other, 'linux/amd64'],
		[digest, 'linux/arm64'],
	]);
});

test.after.always(async () => registry[Symbol.asyncDispose]());

async function read(from: Registry, descriptor = blob): Promise<Buffer> {
	const chunks: Buffer[] = [];
	for await (const chunk of from.blob(descriptor, never)) {
		chunks.push(chunk);
	}

	return Buffer.concat(chunks);
}

for (const [name, tag] of [
	['an OCI image', 'one'],
	['a Docker image', 'docker'],
	["a list's image for s390x", 'list'],
	['the only image of a list that does not say what it is for', 'unlabelled'],
	['an artifact that is for no platform', 'artifact'],
] as const) {
	test(`${name} is found by its tag, and its blobs are read`, async t => {
		using from = registryFor(`${registry.host}/org/podvm:${tag}`);
		const manifest = await from.manifest(platform, never);
		t.deepEqual(
			manifest.layers,
			layers.map(layer => ({digest: digestOf(layer), size: layer.length})),
		);
		t.true(tag === 'docker' || tag === 'artifact' || manifest.digest === digest);
		t.true((await read(from)).equals(large));
	});
}

test('an image is found by its digest', async t => {
	using from = registryFor(`${registry.host}/org/podvm@${digest}`);
	t.is((await from.manifest(platform, never)).digest, digest);
});

test('if a list has no matching platform, the error names its platforms', async t => {
	using from = registryFor(`${registry.host}/org/podvm:foreign`);
	t.like(await t.throwsAsync(from.manifest(platform, never), {instanceOf: AdaptorError}), {
		code: 'not-found',
		where: {platforms: 'linux/amd64, linux/arm64'},
	});
});

for (const [name, tag, found] of [
	['an image whose configuration is for amd64', 'amd64', 'linux/amd64'],
	['an image for amd64 that a list says is for s390x', 'mislabelled', 'linux/amd64'],
	['the only image of a list, which is for amd64,', 'single', 'linux/amd64'],
] as const) {
	test(`${name} is refused, and the error says how to use it nevertheless`, async t => {
		using from = registryFor(`${registry.host}/org/podvm:${tag}`);
		const error = await t.throwsAsync(from.manifest(platform, never), {
			instanceOf: AdaptorError,
			message: /another platform than linux\/s390x.*-platform/v,
		});
		t.like(error, {code: 'failed-precondition', where: {platform: found}});
	});
}

test('an image for amd64 is accepted if that platform is requested', async t => {
	using from = registryFor(`${registry.host}/org/podvm:amd64`);
	t.is((await from.manifest({os: 'linux', architecture: 'amd64'}, never)).layers.length, layers.length);
});

for (const what of ['org/podvm:nothing', 'org/nothing:one', `org/podvm@sha256:${'0'.repeat(64)}`]) {
	test(`${what.slice(0, 20)}, which is not there, is not found`, async t => {
		using from = registryFor(`${registry.host}/${what}`);
		t.is((await t.throwsAsync(from.manifest(platform, never), {instanceOf: AdaptorError})).code, 'not-found');
	});
}

test('a registry with logins accepts valid credentials, and the error says what is missing otherwise', async t => {
	await using closed = await startRegistry({root: registry.root, htpasswd});
	const reference = `${closed.host}/org/podvm:one`;
	using from = registryFor(reference, {credentials: puller});
	await from.manifest(platform, never);
	t.true((await read(from)).equals(large));
	using nobody = registryFor(reference);
	t.like(
		await t.throwsAsync(nobody.manifest(platform, never), {
			instanceOf: AdaptorError,
			message: /wants credentials.*REGISTRY_AUTH_FILE/v,
		}),
		{code: 'unauthenticated'},
	);
	using wrong = registryFor(reference, {credentials: {user: 'puller', password: new Secret('other')}});
	const error = await t.throwsAsync(wrong.manifest(platform, never), {
		instanceOf: AdaptorError,
		message: /does not accept/v,
	});
	t.notRegex(error.message, /other/v);
});

test('tokens are fetched over TLS from the realm of the registry with the credentials, then presented', async t => {
	await using certificate = await makeCertificate();
	await using tokens = await serve((incoming, response) => {
		const {searchParams} = new URL(incoming.url ?? '', 'https://x');
		const isKnown = incoming.headers.authorization === `Basic ${Buffer.from('puller:secret').toString('base64')}`;
		response.writeHead(isKnown ? 200 : 401, {'content-type': 'application/json'});
		response.end(
			isKnown
				? JSON.stringify({
						token: tokenFor(
							/^repository:(.*):pull$/v.exec(searchParams.get('scope') ?? '')?.[1] ?? '',
							certificate,
						),
						expires_in: 300,
					})
				: '{}',
		);
	}, certificate);
	await using closed = await startRegistry({
		root: registry.root,
		tls: certificate,
		token: {realm: `${tokens.origin}/token?account=x`, certPath: certificate.certPath},
	});
	const reference = `${closed.host}/org/podvm:list`;
	const localHosts = [tokens.host];
	using from = registryFor(reference, {credentials: puller, ca: certificate.cert, localHosts});
	t.is((await from.manifest(platform, never)).digest, digest);
	t.true((await read(from)).equals(large));
	t.is(tokens.requests.length, 1);
	t.regex(tokens.requests[0]?.url ?? '', /account=x&service=registry&scope=repository%3Aorg%2Fpodvm%3Apull/v);

	using nobody = registryFor(reference, {ca: certificate.cert, localHosts});
	t.is((await t.throwsAsync(nobody.manifest(platform, never), {instanceOf: AdaptorError})).code, 'unauthenticated');
	// Its certificate is nobody's who is trusted without being named.
	using distrustful = registryFor(reference, {credentials: puller});
	const error = await t.throwsAsync(distrustful.manifest(platform, never), {
		instanceOf: HttpError,
		message: /not trusted.*-registry-ca/v,
	});
	t.true(error.isFinal);
});

test('an identity token is exchanged by POST', async t => {
	await using tokens = await serve((incoming, response) => {
		let body = '';
		incoming
			.on('data', (chunk: Buffer) => {
				body += chunk.toString();
			})
			.on('end', () => {
				const form = new URLSearchParams(body);
				response.writeHead(
					form.get('refresh_token') === 'refresh' && form.get('grant_type') === 'refresh_token' ? 200 : 400,
				);
				response.end('{"access_token":"short"}');
			});
	});
	await using front = await serve((incoming, response) => {
		if (incoming.headers.authorization === 'Bearer short') {
			forward(registry.host, incoming, response);
		} else {
			response.writeHead(401, {'www-authenticate': `Bearer realm="${tokens.origin}",service="s"`});
			response.end();
		}
	});
	using from = registryFor(`${front.host}/org/podvm:one`, {
		credentials: {identityToken: new Secret('refresh')},
		localHosts: [tokens.host],
	});
	t.is((await from.manifest(platform, never)).digest, digest);
});

test('an interrupted transfer continues at its position, as long as it makes progress', async t => {
	await using front = await serve((incoming, response) => {
		// 100,000 bytes at a time: more breaks than attempts, each after some progress.
		forward(registry.host, incoming, response, (sent, chunk) =>
			sent + chunk.length > 100_000 ? undefined : chunk,
		);
	});
	using from = registryFor(`${front.host}/org/podvm:one`);
	t.true((await read(from)).equals(large));
	const ranges = front.requests.map(({headers}) => headers.range).filter(range => range !== undefined);
	t.true(ranges.length >= 6, ranges.join());
	t.deepEqual(
		ranges,
		ranges.toSorted((a, b) => Number(/\d+/v.exec(a)) - Number(/\d+/v.exec(b))),
	);
});

test('if a server ignores the range and sends everything again, each byte is still delivered once', async t => {
	let times = 0;
	await using front = await serve((incoming, response) => {
		delete incoming.headers.range;
		times++;
		forward(registry.host, incoming, response, (sent, chunk) =>
			times === 1 && sent > 200_000 ? undefined : chunk,
		);
	});
	using from = registryFor(`${front.host}/org/podvm:one`);
	t.true((await read(from)).equals(large));
	t.is(times, 2);
});

test('a transfer without progress fails', async t => {
	await using front = await serve((_, response) => response.destroy());
	using from = registryFor(`${front.host}/org/podvm:one`);
	await t.throwsAsync(read(from), {instanceOf: HttpError});
	t.is(front.requests.length, 5);
});

test('a request with a temporary failure is repeated; a refused request is not', async t => {
	let status = 503;
	await using front = await serve((incoming, response) => {
		if (status === 503) {
			status = 429;
			response.writeHead(503).end();
		} else if (status === 429) {
			status = 200;
			response.writeHead(429).end();
		} else if (status === 418) {
			response.writeHead(418).end('{"errors":[{"code":"DENIED"},{"code":"<script>"}]}');
		} else {
			forward(registry.host, incoming, response);
		}
	});
	using from = registryFor(`${front.host}/org/podvm:one`);
	t.is((await from.manifest(platform, never)).digest, digest);
	t.is(front.requests.length, 4, 'the manifest three times, its configuration once');
	status = 418;
	await t.throwsAsync(from.manifest(platform, never), {instanceOf: HttpError, message: /status 418 \(DENIED\)/v});
	t.is(front.requests.length, 5);
});

const corruptions: ReadonlyArray<readonly [name: string, message: RegExp, change: (content: Buffer) => Buffer]> = [
	[
		'has another byte',
		/does not match its digest/v,
		content => Buffer.concat([Buffer.from([(content[0] ?? 0) ^ 1]), content.subarray(1)]),
	],
	['is longer than its manifest says', /more than its/v, content => Buffer.concat([content, content])],
];
for (const [name, message, change] of corruptions) {
	test(`a blob that ${name} is damaged`, async t => {
		await using front = await serve((_, response) => response.end(change(large)));
		using from = registryFor(`${front.host}/org/podvm:one`);
		t.is((await t.throwsAsync(read(from), {instanceOf: AdaptorError, message})).code, 'data-loss');
	});
}

test('a manifest that is does not match its digest is refused', async t => {
	await using front = await serve((_, response) => response.end(JSON.stringify({layers: [blob]})));
	using from = registryFor(`${front.host}/org/podvm@${digest}`);
	t.is(
		(
			await t.throwsAsync(from.manifest(platform, never), {
				instanceOf: AdaptorError,
				message: /content of a manifest does not match its digest/v,
			})
		).code,
		'data-loss',
	);
});

for (const [name, body] of [
	['is not JSON', '<html>'],
	['is null', 'null'],
	['has no layers', '{"layers":[]}'],
	['has a layer without a digest', '{"layers":[{"size":1}]}'],
	['has a layer whose digest is a path', '{"layers":[{"digest":"../../x","size":1}]}'],
	['has a layer of negative size', `{"layers":[{"digest":"${blob.digest}","size":-1}]}`],
	['is a list of lists', `{"manifests":[{"digest":"${blob.digest}","size":1}]}`],
	['is endless', `{"layers":"${'x'.repeat(5_000_000)}"}`],
] as const) {
	test(`a manifest that ${name} is refused`, async t => {
		await using front = await serve((_, response) => response.end(body));
		using from = registryFor(`${front.host}/org/podvm:one`);
		await t.throwsAsync(from.manifest(platform, never), {instanceOf: AdaptorError});
	});
}

test('if blobs are stored on another server, that server gets no credentials', async t => {
	await using elsewhere = await serve((_, response) => response.end(large));
	await using front = await serve((incoming, response) => {
		if (incoming.headers.authorization === undefined) {
			response.writeHead(401, {'www-authenticate': 'Basic realm="x"'}).end();
		} else if (incoming.url?.includes('/blobs/') === true) {
			response.writeHead(307, {location: `${elsewhere.origin}/stored?signature=x`}).end();
		} else {
			forward(registry.host, incoming, response);
		}
	});
	using from = registryFor(`${front.host}/org/podvm:one`, {credentials: puller, localHosts: [elsewhere.host]});
	t.true((await read(from)).equals(large));
	t.deepEqual(
		elsewhere.requests.map(({headers, url}) => [headers.authorization, url]),
		[[undefined, '/stored?signature=x']],
	);
});

test('a blob store gets no credentials even if it requests them', async t => {
	await using elsewhere = await serve((_, response) =>
		response.writeHead(401, {'www-authenticate': 'Basic realm="x"'}).end(),
	);
	await using front = await serve((_, response) =>
		response.writeHead(302, {location: `${elsewhere.origin}/stored`}).end(),
	);
	using from = registryFor(`${front.host}/org/podvm:one`, {credentials: puller, localHosts: [elsewhere.host]});
	t.is((await t.throwsAsync(read(from), {instanceOf: AdaptorError})).code, 'unauthenticated');
	t.deepEqual(
		elsewhere.requests.map(({headers}) => headers.authorization),
		[undefined],
	);
});

for (const [name, location] of [
	['in a circle', ''],
	['to plain HTTP of another machine', 'http://192.0.2.1/x'],
	['to a file', 'file:///etc/passwd'],
	['to nowhere', 'http://'],
] as const) {
	test(`a redirect ${name} is not followed`, async t => {
		await using front = await serve((incoming, response) =>
			response.writeHead(302, {location: location === '' ? incoming.url : location}).end(),
		);
		using from = registryFor(`${front.host}/org/podvm:one`, {credentials: puller});
		const error = await t.throwsAsync(read(from), {instanceOf: HttpError});
		t.true(error.isFinal);
		t.true(front.requests.length <= 6);
	});
}

/**
 * Where a hostile registry may send us: a service on this machine that trusts it, over TLS or not, by address or by a
 * name that DNS resolves.
 */
for (const [name, isTls, spelling] of [
	['loopback without TLS', false, '127.0.0.1'],
	['loopback over TLS', true, '127.0.0.1'],
	['a name that resolves to loopback, over TLS', true, 'localhost'],
	['a name that resolves to loopback', false, 'localhost'],
	['loopback in IPv6 notation', true, '[::ffff:127.0.0.1]'],
	['loopback as a number', true, '2130706433'],
	['the unspecified address', true, '0.0.0.0'],
] as const) {
	for (const way of ['redirect', 'realm', 'realm for an identity token'] as const) {
		test(`a ${way} to ${name} causes no request`, async t => {
			await using certificate = await makeCertificate();
			await using inside = await serve(
				(_, response) => response.end(way === 'redirect' ? large : '{"token":"x"}'),
				isTls ? certificate : undefined,
			);
			const target = `${isTls ? 'https' : 'http'}://${inside.host.replace('127.0.0.1', spelling)}`;
			await using front = await serve((incoming, response) => {
				if (way === 'redirect') {
					response.writeHead(307, {location: `${target}/x`}).end();
				} else if (incoming.headers.authorization === undefined) {
					response.writeHead(401, {'www-authenticate': `Bearer realm="${target}/x",service="s"`}).end();
				} else {
					response.end(large);
				}
			});
			const options = {
				ca: certificate.cert,
				credentials: way === 'realm for an identity token' ? {identityToken: new Secret('refresh')} : puller,
			};
			using from = registryFor(`${front.host}/org/podvm:one`, options);
			const error = await t.throwsAsync(read(from), {
				instanceOf: HttpError,
				message: isTls ? /loopback or link-local address.*-local-host/v : /only https is allowed/v,
			});
			t.true(error.isFinal);
			t.deepEqual(inside.requests, []);

			if (!spelling.startsWith('[')) {
				using allowed = registryFor(`${front.host}/org/podvm:one`, {
					...options,
					localHosts: [new URL(target).host],
				});
				t.true((await read(allowed)).equals(large));
			}
		});
	}
}

for (const address of ['169.254.169.254', '[fe80::1]', '[::ffff:169.254.169.254]']) {
	test(`a redirect to the link-local address ${address} is not followed`, async t => {
		await using front = await serve((_, response) =>
			response.writeHead(307, {location: `https://${address}/latest/meta-data`}).end(),
		);
		using from = registryFor(`${front.host}/org/podvm:one`, {credentials: puller});
		t.true((await t.throwsAsync(read(from), {instanceOf: HttpError, message: /loopback or link-local/v})).isFinal);
	});
}

test('a redirect to a name that cannot be resolved is reported as such', async t => {
	// Too long for DNS, so that no resolver is asked.
	const name = `${'x'.repeat(64)}.example`;
	await using front = await serve((_, response) => response.writeHead(307, {location: `https://${name}/x`}).end());
	using from = registryFor(`${front.host}/org/podvm:one`);
	await t.throwsAsync(read(from), {instanceOf: HttpError, message: new RegExp(name, 'v')});
});

test('a proxy on this machine is used for redirects of a registry', async t => {
	const {origin, asked} = await proxy(t);
	await using front = await serve((_, response) =>
		response.writeHead(307, {location: 'https://blobs.example.com:1/x'}).end(),
	);
	using from = registryFor(`${front.host}/org/podvm:one`, {
		proxyEnv: {HTTPS_PROXY: origin.replace('127.0.0.1', 'localhost')},
	});
	await t.throwsAsync(read(from), {instanceOf: HttpError});
	t.deepEqual([...new Set(asked)], ['blobs.example.com:1']);
});

for (const slow of ['manifests', 'blobs', 'token', 'refusal'] as const) {
	test(`a ${slow === 'blobs' ? 'configuration' : slow.replace(/s$/v, '')} that arrives byte by byte times out`, async t => {
		const drips = new Set<NodeJS.Timeout>();
		const drip = (response: ServerResponse): void => {
			response.write('{');
			// Never silent, never at its end.
			drips.add(setInterval(() => response.write(' '), 20));
		};
		t.teardown(() => {
			for (const timer of drips) {
				clearInterval(timer);
			}
		});
		await using front = await serve((incoming, response) => {
			const path = incoming.url ?? '';
			if (path.startsWith('/token') || (slow !== 'refusal' && path.includes(`/${slow}/`))) {
				drip(response);
			} else if (slow === 'token') {
				response
					.writeHead(401, {'www-authenticate': `Bearer realm="http://${incoming.headers.host ?? ''}/token"`})
					.end();
			} else if (slow === 'refusal') {
				drip(response.writeHead(403));
			} else {
				forward(registry.host, incoming, response);
			}
		});
		using from = registryFor(`${front.host}/org/podvm:one`, {documentMs: 1000});
		// A blob itself may take as long as it likes, while it moves.
		const received = slow === 'refusal' ? read(from) : from.manifest(platform, never);
		await t.throwsAsync(received, {
			instanceOf: AdaptorError,
			message: slow === 'refusal' ? /wants credentials/v : /more than 1 s to send/v,
		});
	});
}

test('plain HTTP is allowed for this machine and for the hosts in -plain-http', async t => {
	// A name of this machine that does not look like one.
	const front = createServer((incoming, response) => forward(registry.host, incoming, response)).listen(
		0,
		'127.0.0.1',
	);
	t.teardown(() => {
		front.closeAllConnections();
		front.close();
	});
	await once(front, 'listening');
	const host = `0.0.0.0:${(front.address() as AddressInfo).port}`;
	using named = registryFor(`${host}/org/podvm:one`, {plainHosts: [host]});
	t.is((await named.manifest(platform, never)).digest, digest);
	using other = registryFor(`${host}/org/podvm:one`);
	await t.throwsAsync(other.manifest(platform, never), {
		instanceOf: HttpError,
		message: /does not use TLS.*-plain-http/v,
	});
});

async function proxy(t: ExecutionContext): Promise<{readonly origin: string; readonly asked: readonly string[]}> {
	const asked: string[] = [];
	const sockets = new Set<Socket>();
	const server = createServer()
		.on('connect', (incoming, socket: Socket) => {
			asked.push(incoming.url ?? '');
			const target = connect(Number(incoming.url?.split(':')[1]), '127.0.0.1', () => {
				socket.write('HTTP/1.1 200 OK\r\n\r\n');
				target.pipe(socket).pipe(target);
			});
			for (const each of [socket, target]) {
				sockets.add(each);
				each.on('error', () => socket.destroy());
			}
		})
		.listen(0, '127.0.0.1');
	await once(server, 'listening');
	t.teardown(() => {
		for (const socket of sockets) {
			socket.destroy();
		}

		server.close();
	});
	return {origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked};
}

test('HTTPS_PROXY is used, where NO_PROXY does not say otherwise', async t => {
	await using certificate = await makeCertificate();
	await using closed = await startRegistry({root: registry.root, tls: certificate});
	const {origin, asked} = await proxy(t);
	// A name of this machine that does not look like one.
	const host = closed.host.replace('127.0.0.1', '0.0.0.0');
	const options = {ca: certificate.cert, proxyEnv: {HTTPS_PROXY: origin}};
	using from = registryFor(`${host}/org/podvm:one`, options);
	t.true((await read(from)).equals(large));
	t.deepEqual([...new Set(asked)], [host]);
	const before = asked.length;
	using direct = registryFor(`${host}/org/podvm:one`, {
		...options,
		proxyEnv: {HTTPS_PROXY: origin, NO_PROXY: '0.0.0.0'},
	});
	t.true((await read(direct)).equals(large));
	t.is(asked.length, before);
});

test('a proxy may have no scheme; an invalid proxy is refused without showing its password', t => {
	for (const [name, value] of [
		['HTTPS_PROXY', 'http://user:sesame@[bad'],
		['https_proxy', 'user:sesame@proxy:99999'],
		['HTTP_PROXY', 'socks5://user:sesame@proxy'],
		['http_proxy', 'http://user:sesam%e@proxy'],
	] as const) {
		const error = t.throws(() => registryFor('quay.io/x', {proxyEnv: {[name]: value}}), {
			instanceOf: AdaptorError,
			message: new RegExp(`^${name} is not the URL`, 'v'),
		});
		t.false(error.message.includes('sesam'));
	}

	using from = registryFor('quay.io/x', {
		proxyEnv: {HTTPS_PROXY: 'user:sesame@proxy:3128', NO_PROXY: '*.example.com,[::1]', HTTP_PROXY: ''},
	});
	t.truthy(from);
});

test('requests to this machine do not go through the proxy', async t => {
	await using closed = await startRegistry({root: registry.root, htpasswd});
	await using proxy = await serve((_, response) => response.writeHead(502).end());
	using from = registryFor(`${closed.host}/org/podvm:one`, {
		credentials: puller,
		proxyEnv: {HTTP_PROXY: proxy.origin, HTTPS_PROXY: proxy.origin},
	});
	t.true((await read(from)).equals(large));
	t.deepEqual(proxy.requests, []);
});

test('waiting for a silent registry ends with the signal', async t => {
	const stopping = new AbortController();
	const enough = new Error('enough');
	await using front = await serve(() => stopping.abort(enough));
	using from = registryFor(`${front.host}/org/podvm:one`);
	await t.throwsAsync(from.manifest(platform, stopping.signal), {is: enough});
});

test('if a registry falls silent before or during an answer, the request is repeated, and fails in time', async t => {
	const asked = {manifests: 0, blobs: 0};
	await using front = await serve((incoming, response) => {
		if (incoming.url?.includes('/blobs/') === true) {
			asked.blobs++;
			response.writeHead(incoming.headers.range === undefined ? 200 : 206, {'content-range': 'bytes 1000-'});
			response.write(incoming.headers.range === undefined ? large.subarray(0, 1000) : '');
			response.flushHeaders();
		} else {
			asked.manifests++;
		}
	});
	using from = registryFor(`${front.host}/org/podvm:one`, {silenceMs: 1000});
	await Promise.all([
		t.throwsAsync(from.manifest(platform, never), {
			instanceOf: HttpError,
			message: /Timed out after 1000 ms waiting for an answer of 127/v,
		}),
		t.throwsAsync(read(from), {instanceOf: HttpError, message: /Timed out after 1000 ms waiting for more data/v}),
	]);
	t.true(asked.manifests > 1 && asked.blobs > 1);
});

test('challenges are read as they are written', t => {
	const read = (header: string): unknown =>
		Object.fromEntries(
			[...parseChallenges(header)].map(([scheme, parameters]) => [scheme, Object.fromEntries(parameters)]),
		);
	t.deepEqual(
		read(
			'Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:a/b:pull,push"',
		),
		{
			bearer: {
				realm: 'https://auth.example.com/token',
				service: 'registry.example.com',
				scope: 'repository:a/b:pull,push',
			},
		},
	);
	t.deepEqual(read('Basic realm="a \\"b\\"", Bearer realm=x, service = "y"'), {
		basic: {realm: 'a "b"'},
		bearer: {realm: 'x', service: 'y'},
	});
	t.deepEqual(read('Negotiate, Basic realm=""'), {negotiate: {}, basic: {realm: ''}});
	t.deepEqual(read(''), {});
});

/** The webhook on real TLS connections: what it takes, what it refuses, a certificate that changes, and how it goes. */
import {once} from 'node:events';
import {mkdir, rename, rm, writeFile} from 'node:fs/promises';
import {get, type IncomingMessage} from 'node:http';
import {createServer, connect as connectTcp, type AddressInfo, type Socket} from 'node:net';
import {join} from 'node:path';
import {text} from 'node:stream/consumers';
import {connect as connectTls, type TLSSocket} from 'node:tls';
import {X509Certificate} from 'node:crypto';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {silentLogger} from '../../src/core/log.ts';
import {makeClientCertificate} from '../../src/relay/certificates.ts';
import {startWebhook} from '../../src/webhook/server.ts';
import {directoryOf} from '../support/directory.ts';
import {Client, makeIssuer, MountedSecret, serverName, until, webhookOf} from './harness.ts';
import {patchIn, podOf, policy, responseIn, reviewOf} from './pods.ts';

const question = JSON.stringify(reviewOf(podOf([{resources: {requests: {cpu: '2', memory: '1Gi'}}}])));

async function probe(port: number, path: string): Promise<{status: number; body: string}> {
	const [response] = (await once(get({host: '127.0.0.1', port, path, agent: false}), 'response')) as [
		IncomingMessage,
	];
	return {status: response.statusCode ?? 0, body: await text(response)};
}

test('a review is answered, its connection is kept, and the decision is logged', async t => {
	const {client, log} = await webhookOf(t);
	const [first, second] = [
		await client.call({body: question}),
		await client.call({body: question, headers: {'Content-Type': 'application/json; charset=utf-8'}}),
	];
	t.is(first.status, 200);
	t.is(first.headers['content-type'], 'application/json');
	t.is(first.headers['connection'], 'keep-alive');
	t.is(second.body, first.body);
	t.true(patchIn(responseIn(JSON.parse(first.body))).length > 0);
	t.is(Object.values(client.agent.freeSockets).flat().length, 1);
	t.deepEqual(
		log.lines.filter(({message}) => message === 'pod changed').map(({fields}) => fields),
		Array.from({length: 2}, () => ({pod: 'shop/app', vcpus: 2, memoryMib: 1024})),
	);
});

test('an invalid request is refused with the expected format, and the connection stays usable', async t => {
	const {client, log} = await webhookOf(t);
	for (const [call, status] of [
		[{method: 'GET'}, 405],
		[{path: '/mutate'}, 404],
		[{path: '/'}, 404],
		[{headers: {'Content-Type': 'application/yaml'}, body: question}, 415],
		[{headers: {'Content-Type': 'application/jsonp'}, body: question}, 415],
		[{body: ''}, 400],
		[{body: '{'}, 400],
		[{body: 'null'}, 400],
		[{body: '{}'}, 400],
		[{body: Buffer.of(0xff, 0xfe, 0)}, 400],
		[{body: '['.repeat(1_000_000)}, 400],
	] as const) {
		const reply = await client.call(call);
		t.is(reply.status, status, JSON.stringify(call).slice(0, 80));
		t.regex(reply.body, /\.\n$/);
	}

	t.is((await client.call({method: 'PUT'})).headers.allow, 'POST');
	t.is((await client.call({body: question})).status, 200);
	t.deepEqual(
		[...new Set(log.lines.filter(({level}) => level === 'warn').map(({message}) => message))],
		['admission request refused'],
	);
	t.is(log.lines.filter(({level}) => level === 'error').length, 0);
});

test('a body beyond the limit is refused before it is read, declared or not', async t => {
	const {client} = await webhookOf(t);
	const large = Buffer.alloc((3 << 20) + 1, ' ');
	for (const headers of [{'Content-Length': String(large.length)}, {'Transfer-Encoding': 'chunked'}] as ReadonlyArray<
		Record<string, string>
	>) {
		t.is((await client.call({headers, body: large})).status, 413);
	}

	t.is(
		(await client.call({body: Buffer.concat([Buffer.from(question), large.subarray(question.length + 1)])})).status,
		200,
	);
});

test('bytes that are not TLS, and callers that hang up early, do not affect other callers', async t => {
	const {client, webhook, issuer} = await webhookOf(t);
	const plain = connectTcp(webhook.port, '127.0.0.1');
	plain.on('error', () => undefined);
	plain.write('GET / HTTP/1.1\r\n\r\n');
	await once(plain, 'close');
	const half = connectTls({host: '127.0.0.1', port: webhook.port, ca: issuer.ca, servername: serverName});
	await once(half, 'secureConnect');
	half.write(
		'POST /mutate-v1-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{',
	);
	half.destroy();
	t.is((await client.call({body: question})).status, 200);
});

test('a thousand reviews at once, over a hundred connections, are each answered with their own uid', async t => {
	const {webhook, issuer} = await webhookOf(t, {log: silentLogger});
	const client = new Client(webhook.port, issuer.ca, {maxSockets: 100});
	t.teardown(() => client.close());
	const pod = podOf([{resources: {limits: {cpu: '1'}, requests: {cpu: '1'}}}]);
	const uids = await Promise.all(
		Array.from(
			{length: 1000},
			async (_, index) => responseIn(await client.review(reviewOf(pod, {uid: `uid-${index}`}))).uid,
		),
	);
	t.deepEqual(
		uids,
		Array.from({length: 1000}, (_, index) => `uid-${index}`),
	);
});

test('a certificate that kubelet swaps is used for new connections, and old connections stay', async t => {
	const {client, webhook, issuer, secret, log} = await webhookOf(t);
	const before = await client.call({body: question});
	const next = await issuer.issue();
	await secret.write(next);
	const fresh = new Client(webhook.port, issuer.ca, {keepAlive: false});
	t.teardown(() => fresh.close());
	const wanted = new X509Certificate(next.cert).fingerprint256;
	await until(async () => (await fresh.call({body: question})).fingerprint === wanted);
	t.is((await client.call({body: question})).fingerprint, before.fingerprint);
	t.is(log.lines.filter(({message}) => message === 'TLS certificate loaded').length, 2);
	t.is(log.lines.filter(({level}) => level === 'warn').length, 0);
});

test('with a broken or missing certificate pair, the old one stays, and each problem is logged once', async t => {
	const {webhook, issuer, secret, log} = await webhookOf(t);
	const fresh = new Client(webhook.port, issuer.ca, {keepAlive: false});
	t.teardown(() => fresh.close());
	const {fingerprint} = await fresh.call({body: question});
	const warnings = (): number => log.lines.filter(({level}) => level === 'warn').length;
	const put = async (name: string, content: string): Promise<void> => {
		await writeFile(join(secret.directory, 'new'), content);
		await rename(join(secret.directory, 'new'), join(secret.directory, name));
	};
	const next = await issuer.issue();
	await put('tls.crt', next.cert);
	await until(() => warnings() === 1);
	t.is((await fresh.call({body: question})).fingerprint, fingerprint);
	await put('tls.key', next.key.reveal());
	await until(
		async () => (await fresh.call({body: question})).fingerprint === new X509Certificate(next.cert).fingerprint256,
	);
	await put('tls.key', '');
	await until(() => warnings() === 2);
	await put('tls.crt', 'no certificate');
	await until(() => warnings() === 3);
	// One file goes after the other: it may be said of each.
	await rm(secret.directory, {recursive: true});
	await until(() => warnings() >= 4);
	t.is((await fresh.call({body: question})).status, 200);
	t.true(warnings() <= 5);
	t.deepEqual(
		[...new Set(log.lines.filter(({level}) => level === 'warn').map(({message}) => message))],
		['new TLS certificate is unusable; keeping the old one'],
	);
	t.notRegex(JSON.stringify(log.lines), /PRIVATE KEY/);
});

test('without a certificate, or with a port in use, the webhook does not start and has a remedy', async t => {
	const issuer = await makeIssuer();
	const options = {port: 0, probePort: 0, tls: {}, policy, drainDelayMs: 0, log: silentLogger};
	const none = await directoryOf(t);
	const missing = await t.throwsAsync(startWebhook({...options, tlsDirectory: none}), {instanceOf: AdaptorError});
	t.like(missing, {code: 'failed-precondition', where: {directory: none}});
	t.regex(missing.message, /tls\.crt/);
	const [one, other] = [await issuer.issue(), await issuer.issue()];
	const mixed = join(none, 'mixed');
	await mkdir(mixed);
	await new MountedSecret(mixed).write({cert: one.cert, key: other.key});
	t.like(await t.throwsAsync(startWebhook({...options, tlsDirectory: mixed})), {code: 'failed-precondition'});

	const taken = createServer().listen(0);
	await once(taken, 'listening');
	t.teardown(() => void taken.close());
	const secret = new MountedSecret(join(none, 'good'));
	await secret.write(one);
	const {port} = taken.address() as AddressInfo;
	t.like(await t.throwsAsync(startWebhook({...options, tlsDirectory: secret.directory, port})), {
		code: 'failed-precondition',
		where: {port},
	});
	t.like(await t.throwsAsync(startWebhook({...options, tlsDirectory: secret.directory, probePort: port})), {
		code: 'failed-precondition',
		where: {port},
	});
});

test('a client that offers HTTP/2, like the API server, is answered with HTTP/1.1', async t => {
	const {webhook, issuer} = await webhookOf(t);
	const socket = connectTls({
		host: '127.0.0.1',
		port: webhook.port,
		ca: issuer.ca,
		servername: serverName,
		ALPNProtocols: ['h2', 'http/1.1'],
	});
	await once(socket, 'secureConnect');
	t.is(socket.alpnProtocol, 'http/1.1');
	socket.destroy();
});

test('a TLS version below the minimum is refused', async t => {
	const {webhook, issuer} = await webhookOf(t, {tls: {minVersion: 'TLSv1.3'}});
	const old = new Client(webhook.port, issuer.ca, {maxVersion: 'TLSv1.2'});
	t.teardown(() => old.close());
	await t.throwsAsync(old.call({body: question}));
});

test('probes are answered, and readiness ends with the drain, in which reviews are still answered', async t => {
	const {webhook, client} = await webhookOf(t, {drainDelayMs: 8000});
	t.deepEqual(await probe(webhook.probePort, '/healthz'), {status: 200, body: 'ok\n'});
	t.deepEqual(await probe(webhook.probePort, '/readyz'), {status: 200, body: 'ok\n'});
	t.is((await probe(webhook.probePort, '/metrics')).status, 404);
	await client.call({body: question});
	const gone = webhook[Symbol.asyncDispose]();
	t.is((await probe(webhook.probePort, '/readyz')).status, 503);
	t.is((await probe(webhook.probePort, '/healthz')).status, 200);
	const last = await client.call({body: question});
	t.is(last.status, 200);
	t.is(last.headers['connection'], 'close');
	await gone;
	await t.throwsAsync(client.call({body: question}), {code: 'ECONNREFUSED'});
	await t.throwsAsync(probe(webhook.probePort, '/healthz'), {code: 'ECONNREFUSED'});
	await webhook[Symbol.asyncDispose]();
});

test('a stop completes the open review and does not wait for idle connections', async t => {
	const {webhook, client, issuer} = await webhookOf(t);
	await client.call({body: question});
	const slow = connectTls({host: '127.0.0.1', port: webhook.port, ca: issuer.ca, servername: serverName});
	await once(slow, 'secureConnect');
	const received = text(slow);
	slow.write(
		`POST /mutate-v1-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: ${Buffer.byteLength(question)}\r\n\r\n`,
	);
	// It says so when it has the request.
	await once(slow, 'readable');
	const gone = webhook[Symbol.asyncDispose]();
	await until(async () =>
		probe(webhook.probePort, '/readyz').then(
			({status}) => status === 503,
			() => true,
		),
	);
	slow.end(question);
	t.regex(await received, /HTTP\/1\.1 200 OK/);
	await gone;
});

/** A caller that sends the beginning of a body and then nothing. */
async function stalled(
	port: number,
	ca: string,
	bytes: number,
	localAddress = '127.0.0.1',
): Promise<{readonly status: Promise<number | undefined>; readonly socket: TLSSocket}> {
	const socket = connectTls({
		socket: connectTcp({host: '127.0.0.1', port, localAddress}),
		ca,
		servername: serverName,
	});
	const chunks: Buffer[] = [];
	socket.on('error', () => undefined).on('data', (chunk: Buffer) => chunks.push(chunk));
	const status = once(socket, 'close').then(
		() => Number(/^HTTP\/1\.1 (\d+)/.exec(Buffer.concat(chunks).toString())?.[1] ?? NaN) || undefined,
	);
	await once(socket, 'secureConnect');
	socket.write(
		`POST /mutate-v1-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${bytes + 1}\r\n\r\n`,
	);
	await new Promise(resolve => socket.write(Buffer.alloc(bytes, ' '), resolve));
	return {status, socket};
}

test('if too many bodies stall, the oldest gets 429, and other reviews are answered', async t => {
	const {client, webhook, issuer} = await webhookOf(t, {
		limits: {bodyBytes: 1 << 20, unfinishedBytes: 2 << 20, connections: 100},
	});
	const callers = [];
	for (let index = 0; index < 5; index++) {
		callers.push(await stalled(webhook.port, issuer.ca, 600_000));
		t.is((await client.call({body: question})).status, 200);
	}

	t.deepEqual([await callers[0]?.status, await callers[1]?.status], [429, 429]);
	for (const {socket} of callers) {
		socket.destroy();
	}

	t.is((await client.call({body: question})).status, 200);
});

test('a caller that continues to send receives its 413 or 429: the connection is not reset first', async t => {
	const {webhook, issuer} = await webhookOf(t, {
		limits: {bodyBytes: 1 << 20, unfinishedBytes: 1 << 19, connections: 100},
	});
	for (let round = 0; round < 10; round++) {
		for (const [declared, status] of [
			[20 << 20, 413],
			[1 << 20, 429],
		] as const) {
			const {socket, status: seen} = await stalled(webhook.port, issuer.ca, declared - 1);
			t.is(await seen, status);
			socket.destroy();
		}
	}
});

test('unread answers count towards the limit: if there are too many, the connection of the oldest one ends', async t => {
	const large = 8 << 20;
	const {client, webhook, issuer} = await webhookOf(t, {
		limits: {bodyBytes: large + 4096, unfinishedBytes: 2 * large, connections: 100},
	});
	const asked = JSON.stringify(reviewOf(podOf([{}]), {uid: 'x'.repeat(large)}));
	const callers: Array<{readonly socket: TLSSocket; readonly closed: Promise<unknown>}> = [];
	for (let index = 0; index < 3; index++) {
		const socket = connectTls({host: '127.0.0.1', port: webhook.port, ca: issuer.ca, servername: serverName});
		socket
			.on('error', () => undefined)
			.write(
				`POST /mutate-v1-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ${asked.length}\r\n\r\n`,
			);
		socket.write(asked);
		// Before the wait: the connection may end during it.
		const closed = new Promise(resolve => socket.once('close', resolve));
		await once(socket, 'readable');
		callers.push({socket, closed});
		t.is((await client.call({body: question})).status, 200);
	}

	const lengths = await Promise.all(
		callers.map(async ({socket, closed}) => {
			let received = 0;
			socket.on('data', (chunk: Buffer) => {
				received += chunk.length;
			});
			await closed;
			return received;
		}),
	);
	t.deepEqual(
		lengths.map(received => received > large),
		[false, false, true],
		String(lengths),
	);
});

test('a connection that sends requests before it has its answers ends', async t => {
	const {client, webhook, issuer} = await webhookOf(t);
	for (const small of [
		'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
		'GET / HTTP/1.1\r\n\r\n',
		'GET / HTTP/1.1\r\nHost: x\r\nExpect: x\r\n\r\n',
		'GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n',
	]) {
		const socket = connectTls({host: '127.0.0.1', port: webhook.port, ca: issuer.ca, servername: serverName});
		socket.on('error', () => undefined).write(small.repeat(400));
		const chunks: Buffer[] = [];
		socket.on('data', (chunk: Buffer) => chunks.push(chunk));
		await once(socket, 'close');
		t.true(
			[
				...Buffer.concat(chunks)
					.toString()
					.matchAll(/HTTP\/1\.1 [2-5]/gv),
			].length <= 1,
			small,
		);
	}

	t.is((await client.call({body: question})).status, 200);
});

test('a body that does not come in time is answered with 408', async t => {
	const {webhook, issuer} = await webhookOf(t, {requestTimeoutMs: 500});
	t.is(await (await stalled(webhook.port, issuer.ca, 1000)).status, 408);
});

test('idle connections are closed for new ones, the longest idle first; a connection in use stays', async t => {
	const {client, webhook, issuer} = await webhookOf(t, {
		limits: {bodyBytes: 1 << 20, unfinishedBytes: 2 << 20, connections: 4},
	});
	const busy = await stalled(webhook.port, issuer.ca, 1000);
	const idle: TLSSocket[] = [];
	for (let index = 0; index < 6; index++) {
		const socket = connectTls({host: '127.0.0.1', port: webhook.port, ca: issuer.ca, servername: serverName});
		socket.on('error', () => undefined);
		await once(socket, 'secureConnect');
		idle.push(socket);
	}

	await until(() => idle.filter(socket => socket.closed).length === 3);
	t.deepEqual(
		idle.map(socket => socket.closed),
		[true, true, true, false, false, false],
	);
	t.is((await client.call({body: question})).status, 200);
	t.false(busy.socket.closed);
	for (const socket of [...idle, busy.socket]) {
		socket.destroy();
	}
});

test('if one address holds all connections with requests, it loses one to another address', async t => {
	const {client, webhook, issuer} = await webhookOf(t, {
		limits: {bodyBytes: 1 << 20, unfinishedBytes: 2 << 20, connections: 4},
	});
	const callers: Array<Awaited<ReturnType<typeof stalled>>> = [];
	for (let index = 0; index < 4; index++) {
		callers.push(await stalled(webhook.port, issuer.ca, 1000, '127.0.0.2'));
	}

	t.is((await client.call({body: question})).status, 200);
	await until(() => callers.some(({socket}) => socket.closed));
	t.deepEqual(
		callers.map(({socket}) => socket.closed),
		[true, false, false, false],
	);
	for (const {socket} of callers) {
		socket.destroy();
	}
});

test('idle connections of one address do not end those of another', async t => {
	const {client, webhook, issuer} = await webhookOf(t, {
		limits: {bodyBytes: 1 << 20, unfinishedBytes: 2 << 20, connections: 4},
	});
	await client.call({body: question});
	const [kept] = Object.values(client.agent.freeSockets).flat();
	const idle: TLSSocket[] = [];
	for (let index = 0; index < 8; index++) {
		const socket = connectTls({
			socket: connectTcp({host: '127.0.0.1', port: webhook.port, localAddress: '127.0.0.2'}),
			ca: issuer.ca,
			servername: serverName,
		});
		socket.on('error', () => undefined);
		await once(socket, 'secureConnect');
		idle.push(socket);
	}

	await until(() => idle.filter(socket => socket.closed).length === 5);
	t.is((await client.call({body: question})).status, 200);
	t.is(Object.values(client.agent.freeSockets).flat()[0], kept);
	for (const socket of idle) {
		socket.destroy();
	}
});

test('the probe port has a limit of connections too, and answers its probes when it is reached', async t => {
	const {webhook} = await webhookOf(t);
	const sockets: Socket[] = [];
	for (let index = 0; index < 100; index++) {
		const socket = connectTcp({host: '127.0.0.1', port: webhook.probePort, localAddress: '127.0.0.2'});
		socket.on('error', () => undefined);
		await once(socket, 'connect');
		sockets.push(socket);
	}

	t.is((await probe(webhook.probePort, '/healthz')).status, 200);
	await until(() => sockets.filter(socket => socket.closed).length >= 36);
	t.is(sockets.filter(socket => socket.closed).length, 37);
	for (const socket of sockets) {
		socket.destroy();
	}
});

test('a probe that does not come in time is answered with 408', async t => {
	const {webhook} = await webhookOf(t, {requestTimeoutMs: 500});
	const socket = connectTcp({host: '127.0.0.1', port: webhook.probePort});
	socket.write('GET /healthz HTTP/1.1\r\n');
	t.regex(await text(socket), /^HTTP\/1\.1 408/v);
});

test('with a client CA only callers with its certificate are answered', async t => {
	const validity = {notBefore: new Date(Date.now() - 60_000), notAfter: new Date(Date.now() + 3_600_000)};
	// Each is its own authority.
	const [apiServer, stranger] = await Promise.all([
		makeClientCertificate('api', validity),
		makeClientCertificate('stranger', validity),
	]);
	const {webhook, issuer} = await webhookOf(t, {clientCa: apiServer.cert});
	const call = async (certificate?: {cert: string; key: {reveal: () => string}}): Promise<unknown> => {
		const client = new Client(
			webhook.port,
			issuer.ca,
			certificate === undefined ? {} : {cert: certificate.cert, key: certificate.key.reveal()},
		);
		t.teardown(() => client.close());
		return client.call({body: question}).then(
			({status}) => status,
			() => 'refused',
		);
	};
	t.is(await call(apiServer), 200);
	t.is(await call(stranger), 'refused');
	t.is(await call(), 'refused');
});

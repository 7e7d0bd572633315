/** Who we are to VMs: made once, kept, shared, and never lost silently. */
import {execFile} from 'node:child_process';
import {X509Certificate} from 'node:crypto';
import {chmod, readdir, readFile, rm, stat, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {logObserver} from '../../src/observers/log-observer.ts';
import {makeCa, makeClientCertificate, makeServerCertificate} from '../../src/relay/certificates.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {openIdentity, type IdentityFiles, type RelayIdentity} from '../../src/relay/identity.ts';
import {createAgentRelays} from '../../src/relay/relay.ts';
import {from} from '../contract/agent-relays.ts';
import {startForwarder} from '../support/forwarder.ts';
import {capturedLog, realHarness, temporaryDirectory, type LogLine} from './harness.ts';

const run = promisify(execFile);
const dayMs = 86_400_000;
const validity = {notBefore: new Date(Date.now() - dayMs), notAfter: new Date(Date.now() + dayMs)};

async function scratch(t: ExecutionContext): Promise<string> {
	const directory = await temporaryDirectory();
	t.teardown(async () => rm(directory, {recursive: true}));
	return directory;
}

async function opened(
	directory: string,
	{files = {}, now = () => new Date()}: {files?: IdentityFiles; now?: () => Date} = {},
): Promise<{identity: RelayIdentity; lines: readonly LogLine[]}> {
	const {log, lines} = await capturedLog();
	return {identity: await openIdentity({directory: join(directory, 'tls'), files, log, now}), lines};
}

test('a server certificate is P-256, signed by the CA for one name, and back-dated by a day', async t => {
	const {identity} = await opened(await scratch(t));
	const {serverCert = '', serverKey, clientCa} = await identity.issue('podvm-nginx-0123abcd');
	const cert = new X509Certificate(serverCert);
	const ca = new X509Certificate(identity.serverCa);
	t.is(cert.subject, 'CN=podvm-nginx-0123abcd');
	t.is(cert.subjectAltName, 'DNS:podvm-nginx-0123abcd');
	t.is(ca.subject, 'CN=agent-protocol-forwarder');
	t.true(cert.verify(ca.publicKey));
	t.false(cert.ca);
	t.true(ca.ca);
	t.is(cert.publicKey.asymmetricKeyDetails?.namedCurve, 'prime256v1');
	t.true(cert.validFromDate <= new Date(Date.now() - dayMs));
	t.true(cert.validToDate >= new Date(Date.now() + 9 * 365 * dayMs));
	t.regex(serverKey?.reveal() ?? '', /^-----BEGIN PRIVATE KEY-----\n/);
	t.is(new X509Certificate(clientCa ?? '').subject, 'CN=cloud-api-adaptor');
	t.is(clientCa, identity.client.cert);
});

test('strict OpenSSL accepts the server certificate, and the client certificate as its own anchor', async t => {
	const directory = await scratch(t);
	const {identity} = await opened(directory);
	const {serverCert = ''} = await identity.issue('podvm-a');
	const [ca, server, client] = ['ca.pem', 'server.pem', 'client.pem'].map(name => join(directory, name));
	await writeFile(ca ?? '', identity.serverCa);
	await writeFile(server ?? '', serverCert);
	await writeFile(client ?? '', identity.client.cert);
	const verify = async (...options: readonly (string | undefined)[]): Promise<string> =>
		(await run('openssl', ['verify', ...options.filter(option => option !== undefined)])).stdout;
	t.regex(
		await verify('-x509_strict', '-purpose', 'sslserver', '-verify_hostname', 'podvm-a', '-CAfile', ca, server),
		/: OK/,
	);
	await t.throwsAsync(verify('-verify_hostname', 'podvm-b', '-CAfile', ca, server));
	t.regex(await verify('-purpose', 'sslclient', '-CAfile', client, client), /: OK/);
});

test('names of any length, and validity over the year 2050, are read back as they were given', async t => {
	await fc.assert(
		fc.asyncProperty(
			fc.stringMatching(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/),
			fc.date({min: new Date('2026-01-01'), max: new Date('2090-01-01'), noInvalidDate: true}),
			async (name, notBefore) => {
				const dates = {notBefore, notAfter: new Date(notBefore.getTime() + 3650 * dayMs)};
				const ca = await makeCa('agent-protocol-forwarder', dates);
				const cert = new X509Certificate((await makeServerCertificate(name, ca, dates)).cert);
				t.is(cert.subject, `CN=${name}`);
				t.is(cert.subjectAltName, `DNS:${name}`);
				t.is(cert.validFromDate.getTime(), Math.floor(dates.notBefore.getTime() / 1000) * 1000);
				t.is(cert.validToDate.getTime(), Math.floor(dates.notAfter.getTime() / 1000) * 1000);
				t.true(cert.checkIssued(new X509Certificate(ca.cert)));
				t.regex(cert.serialNumber, /^[0-9A-F]{20,32}$/);
			},
		),
		{numRuns: 30},
	);
});

test('after a restart, the identity is the same, in a file that only the owner can read', async t => {
	const directory = await scratch(t);
	const first = await opened(directory);
	const second = await opened(directory);
	t.is(second.identity.serverCa, first.identity.serverCa);
	t.is(second.identity.client.key.reveal(), first.identity.client.key.reveal());
	t.deepEqual(await readdir(join(directory, 'tls')), ['identity.json']);
	t.is((await stat(join(directory, 'tls'))).mode & 0o777, 0o700);
	t.is((await stat(join(directory, 'tls', 'identity.json'))).mode & 0o777, 0o600);
});

test('a VM whose certificate was issued before a restart is reached after it', async t => {
	await using harness = await realHarness();
	const tls = await harness.relays.issue('podvm-a', AbortSignal.timeout(100_000));
	await using _vm = await startForwarder({tls, address: harness.address(1), port: harness.port});
	const {log} = await capturedLog();
	const identity = await openIdentity({directory: join(harness.directory, 'tls'), log});
	const relays = createAgentRelays({identity, forwarderPort: harness.port, observer: logObserver(log), log});
	await using relay = await relays.open(
		{sandboxId: 'a', instanceName: 'podvm-a', socketPath: join(harness.directory, 'a', 's')},
		from(harness.address(1)),
		AbortSignal.timeout(100_000),
	);
	t.is(relay.address, harness.address(1));
});

test('if the clock is 1.5 days behind at a restart, the identity is kept, and the log names the clock', async t => {
	await using harness = await realHarness();
	const tls = await harness.relays.issue('podvm-a', AbortSignal.timeout(100_000));
	await using _vm = await startForwarder({tls, address: harness.address(1), port: harness.port});
	const path = join(harness.directory, 'tls', 'identity.json');
	const kept = await readFile(path, 'utf8');
	const {identity, lines} = await opened(harness.directory, {now: () => new Date(Date.now() - 1.5 * dayMs)});
	t.is(await readFile(path, 'utf8'), kept);
	t.deepEqual(await readdir(join(harness.directory, 'tls')), ['identity.json']);
	const warning = lines.find(({level}) => level === 'warn');
	t.regex(warning?.reason ?? '', /the clock of this node is at \d{4}-.*, the certificate is valid from \d{4}-/);
	t.regex(warning?.remedy ?? '', /clock/);
	// The clock is right again: for this process it always was.
	const {log} = await capturedLog();
	const relays = createAgentRelays({identity, forwarderPort: harness.port, observer: logObserver(log), log});
	await using relay = await relays.open(
		{sandboxId: 'a', instanceName: 'podvm-a', socketPath: join(harness.directory, 'a', 's')},
		from(harness.address(1)),
		AbortSignal.timeout(100_000),
	);
	t.is(relay.address, harness.address(1));
});

test('daemons that start at the same time use one identity', async t => {
	const directory = await scratch(t);
	const all = await Promise.all(Array.from({length: 8}, async () => opened(directory)));
	t.is(new Set(all.map(({identity}) => identity.serverCa)).size, 1);
	t.is(new Set(all.map(({identity}) => identity.client.key.reveal())).size, 1);
	t.deepEqual(await readdir(join(directory, 'tls')), ['identity.json']);
});

for (const [what, spoil] of [
	['torn', (text: string) => text.slice(0, text.length / 2)],
	['empty', () => ''],
	['foreign', () => '{"caCert": "x"}'],
	['not an object', () => 'null'],
	[
		'mixed up',
		(text: string) =>
			JSON.stringify({
				...(JSON.parse(text) as Record<string, string>),
				caKey: (JSON.parse(text) as Record<string, string>)['clientKey'],
			}),
	],
] as const) {
	test(`a file that is ${what} is set aside and replaced; parallel daemons get the same identity`, async t => {
		const directory = await scratch(t);
		await opened(directory);
		const path = join(directory, 'tls', 'identity.json');
		const spoilt = spoil(await readFile(path, 'utf8'));
		await writeFile(path, spoilt);
		const all = await Promise.all(Array.from({length: 4}, async () => opened(directory)));
		t.is(new Set(all.map(({identity}) => identity.serverCa)).size, 1);
		const warnings = all.flatMap(({lines}) => lines).filter(({level}) => level === 'warn');
		t.is(warnings.length, 1);
		t.is(await readFile(warnings[0]?.path ?? '', 'utf8'), spoilt);
		t.is((await readdir(join(directory, 'tls'))).length, 2);
	});
}

test('an identity about to expire is replaced', async t => {
	const directory = await scratch(t);
	const {identity} = await opened(directory);
	const later = await opened(directory, {now: () => new Date(Date.now() + 3640 * dayMs)});
	t.not(later.identity.serverCa, identity.serverCa);
	t.regex(later.lines.find(({level}) => level === 'warn')?.reason ?? '', /valid from/);
});

test('a directory that cannot be made is an error that names it', async t => {
	const directory = await scratch(t);
	await writeFile(join(directory, 'tls'), '');
	const error = await t.throwsAsync<AdaptorError>(opened(directory));
	t.is(error.code, 'failed-precondition');
	t.regex(error.message, new RegExp(`${directory}/tls`));
});

/** The administrator's files: CA, client pair, and a server pair for the image. */
async function ownFiles(
	directory: string,
): Promise<{files: Required<IdentityFiles>; server: Awaited<ReturnType<typeof makeCa>>; ca: string}> {
	const ca = await makeCa('the company', validity);
	const client = await makeClientCertificate('the client', validity);
	const files = {
		caCert: join(directory, 'ca.crt'),
		cert: join(directory, 'client.crt'),
		key: join(directory, 'client.key'),
	};
	await writeFile(files.caCert, `a comment\n${ca.cert}`);
	await writeFile(files.cert, client.cert);
	await writeFile(files.key, client.key.reveal());
	return {files, server: await makeServerCertificate('podvm-server', ca, validity), ca: ca.cert};
}

test('with a CA of the administrator, the VM is podvm-server, and no own keys are created or sent to it', async t => {
	const directory = await scratch(t);
	const {files, server} = await ownFiles(directory);
	await using harness = await realHarness({files});
	const signal = AbortSignal.timeout(100_000);
	t.deepEqual(await harness.relaysWith({minVersion: 'VersionTLS13'}).issue('podvm-a', signal), {
		minVersion: 'VersionTLS13',
	});
	t.deepEqual(await harness.relays.issue('podvm-a', signal), {});
	await using _vm = await startForwarder({
		tls: {serverCert: server.cert, serverKey: server.key, clientCa: await readFile(files.cert, 'utf8')},
		address: harness.address(1),
		port: harness.port,
	});
	await using relay = await harness.relays.open(
		{sandboxId: 'a', instanceName: 'podvm-a', socketPath: join(harness.directory, 'a', 's')},
		from(harness.address(1)),
		signal,
	);
	t.is(relay.address, harness.address(1));
	await t.throwsAsync(stat(join(harness.directory, 'tls')), {code: 'ENOENT'});
});

test('with only a custom client certificate, the own CA signs for VMs, and VMs trust that certificate', async t => {
	const directory = await scratch(t);
	const {
		files: {cert, key},
	} = await ownFiles(directory);
	const {identity} = await opened(directory, {files: {cert, key}});
	const issued = await identity.issue('podvm-a');
	t.is(issued.clientCa, await readFile(cert, 'utf8'));
	t.is(new X509Certificate(issued.serverCert ?? '').subject, 'CN=podvm-a');
	t.is(identity.serverName('podvm-a'), 'podvm-a');
});

test('files that do not match are refused by name, and keys are never shown', async t => {
	const directory = await scratch(t);
	const {files} = await ownFiles(directory);
	const other = await makeClientCertificate('other', validity);
	const otherKey = join(directory, 'other.key');
	await writeFile(otherKey, other.key.reveal());
	const garbage = join(directory, 'garbage');
	await writeFile(garbage, '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n');
	const cases: ReadonlyArray<readonly [IdentityFiles, RegExp]> = [
		[{...files, key: otherKey}, /client\.crt.*other\.key.*Use the private key/],
		[{...files, key: join(directory, 'missing')}, /CERT_KEY cannot be read.*\/missing/],
		[{...files, key: garbage}, /CERT_KEY is not a PEM private key.*\/garbage/],
		[{...files, cert: garbage}, /CERT_FILE contains an unreadable certificate.*\/garbage/],
		[{...files, caCert: otherKey}, /CACERT_FILE contains no PEM certificate.*other\.key/],
		[{caCert: files.caCert}, /Set CERT_FILE and CERT_KEY/],
		[{cert: files.cert}, /CERT_FILE.*client\.crt.*Set both/],
		[{key: files.key}, /CERT_KEY.*client\.key.*Set both/],
	];
	for (const [given, expected] of cases) {
		const error = await t.throwsAsync<AdaptorError>(opened(directory, {files: given}));
		t.is(error.code, 'failed-precondition');
		t.regex(error.message, expected);
		t.notRegex(error.message, /PRIVATE KEY-/);
	}
});

test("an expired client certificate of the administrator's is warned about", async t => {
	const directory = await scratch(t);
	const {files} = await ownFiles(directory);
	const {lines} = await opened(directory, {files, now: () => new Date(Date.now() + 5 * dayMs)});
	t.true(lines.some(({level, path}) => level === 'warn' && path === files.cert));
});

test('a directory that was left open to others is closed', async t => {
	const directory = await scratch(t);
	await opened(directory);
	await chmod(join(directory, 'tls'), 0o755);
	await opened(directory);
	t.is((await stat(join(directory, 'tls'))).mode & 0o777, 0o700);
});

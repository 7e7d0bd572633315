/** `cloud-api-adaptor webhook` as a container runs it. */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {readFileSync} from 'node:fs';
import {readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {connect as connectTcp} from 'node:net';
import {connect as connectTls, type TLSSocket} from 'node:tls';
import {fileURLToPath} from 'node:url';
import test, {type ExecutionContext} from 'ava';
import {directoryOf} from '../support/directory.ts';
import {caughtSignals, nodeOptions} from '../support/node-options.ts';
import {Client, makeIssuer, MountedSecret, serverName} from './harness.ts';
import {memoryAnnotation, patched, patchIn, podOf, responseIn, reviewOf, vcpusAnnotation} from './pods.ts';

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

/** As the manifest has it. */
const [, manifestNodeOptions = ''] =
	/name: NODE_OPTIONS\n +value: (\S+)/v.exec(
		readFileSync(new URL('../../deploy/base/webhook.yaml', import.meta.url), 'utf8'),
	) ?? [];

interface Process {
	readonly pid: number;
	readonly kill: (signal: NodeJS.Signals) => void;
	readonly exited: Promise<readonly [code: number | null, signal: NodeJS.Signals | null]>;
	/** The first line with this message. */
	readonly event: (message: string) => Promise<Readonly<Record<string, unknown>>>;
	readonly stderr: () => string;
}

function processOf(t: ExecutionContext, env: Readonly<Record<string, string>>): Process {
	const child = spawn(process.execPath, [...nodeOptions, main, 'webhook'], {
		env: {PATH: process.env['PATH'], HOME: '/nonexistent', NODE_OPTIONS: manifestNodeOptions, ...env},
		stdio: ['ignore', 'ignore', 'pipe'],
	});
	const exited = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
	t.teardown(async () => {
		child.kill('SIGKILL');
		await exited;
	});
	const lines: string[] = [];
	const reader = createInterface({input: child.stderr}).on('line', line => lines.push(line));
	return {
		pid: child.pid ?? 0,
		kill: signal => void child.kill(signal),
		exited,
		stderr: () => lines.join('\n'),
		async event(message) {
			for (;;) {
				const found = lines.find(line => line.includes(`"msg":"${message}"`));
				if (found !== undefined) {
					return JSON.parse(found) as Record<string, unknown>;
				}

				if (child.exitCode !== null || child.signalCode !== null) {
					throw new Error(`It ended without saying ${message}:\n${lines.join('\n')}`);
				}

				await Promise.race([once(reader, 'line'), exited]);
			}
		},
	};
}

test('the webhook reads its settings and answers; SIGTERM drains it and ends it with exit code 0', async t => {
	const issuer = await makeIssuer();
	const secret = new MountedSecret(await directoryOf(t));
	await secret.write(await issuer.issue());
	const running = processOf(t, {
		TARGET_RUNTIME_CLASS: 'peers',
		POD_VM_EXTENDED_RESOURCE: 'example.com/vm',
		POD_VM_OVERHEAD_CPU: '250m',
		POD_VM_OVERHEAD_MEMORY: '512Mi',
		WEBHOOK_EXCLUDED_NAMESPACES: 'kube-system,platform',
		WEBHOOK_PORT: '0',
		WEBHOOK_PROBE_PORT: '0',
		WEBHOOK_CERT_DIR: secret.directory,
		WEBHOOK_DRAIN_DELAY: '50ms',
		TLS_MIN_VERSION: 'VersionTLS12',
		TLS_CIPHER_SUITES: 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256',
	});
	const {port, probePort} = await running.event('ready');
	const client = new Client(Number(port), issuer.ca);
	t.teardown(() => client.close());
	const pod = podOf([{resources: {limits: {cpu: '2', memory: '1Gi'}, requests: {cpu: '2', memory: '1Gi'}}}], {
		runtimeClassName: 'peers',
	});
	const after = patched(pod, patchIn(responseIn(await client.review(reviewOf(pod)))));
	t.deepEqual(after.metadata.annotations, {[vcpusAnnotation]: '3', [memoryAnnotation]: '1536'});
	t.deepEqual(after.spec.containers[0]?.resources?.limits, {'example.com/vm': '1'});
	const elsewhere = {...pod, metadata: {...pod.metadata, namespace: 'platform'}};
	t.deepEqual(patchIn(responseIn(await client.review(reviewOf(elsewhere)))), []);
	t.is((await fetch(`http://127.0.0.1:${String(probePort)}/readyz`)).status, 200);
	running.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
	t.like(await running.event('stopping'), {reason: 'The process received SIGTERM'});
	t.notRegex(running.stderr(), /"level":"(?:warn|error|fatal)"/);
});

test('without a certificate, and with wrong settings, the process ends with a remedy', async t => {
	const directory = await directoryOf(t);
	const none = processOf(t, {WEBHOOK_PORT: '0', WEBHOOK_PROBE_PORT: '0', WEBHOOK_CERT_DIR: join(directory, 'none')});
	t.deepEqual(await none.exited, [1, null]);
	t.regex(JSON.stringify(await none.event('cannot run')), /tls\.crt.*WEBHOOK_CERT_DIR/);
	const wrong = processOf(t, {
		POD_VM_OVERHEAD_MEMORY: '256MB',
		POD_VM_EXTENDED_RESOURCE: 'vm',
		TARGET_RUNTIMECLASS: 'a',
		TARGET_RUNTIME_CLASS: 'b',
		WEBHOOK_CERT_DIR: 'certs',
	});
	t.deepEqual(await wrong.exited, [2, null]);
	t.deepEqual(
		[...wrong.stderr().matchAll(/^ {2}(\S+)/gmv)].map(([, name]) => name),
		['TARGET_RUNTIMECLASS', 'POD_VM_EXTENDED_RESOURCE', 'POD_VM_OVERHEAD_MEMORY', 'WEBHOOK_CERT_DIR'],
	);
});

/** MiB that the process has had resident at most. */
async function mostResident(pid: number): Promise<number> {
	const [, kib] = /VmHWM:\s+(\d+) kB/v.exec(await readFile(`/proc/${pid}/status`, 'utf8')) ?? [];
	return Number(kib) / 1024;
}

interface Attack {
	readonly port: number;
	readonly ca: string;
}

const large = 3 << 20;
const sent = {Host: 'x', 'Content-Type': 'application/json'};

function headOf(headers: Readonly<Record<string, string>>): string {
	return `POST /mutate-v1-pod HTTP/1.1\r\n${Object.entries({...sent, ...headers})
		.map(([name, value]) => `${name}: ${value}\r\n`)
		.join('')}\r\n`;
}

/** A connection that is never read from. */
async function connected({port, ca}: Attack): Promise<TLSSocket> {
	const socket = connectTls({
		socket: connectTcp({host: '127.0.0.1', port, localAddress: '127.0.0.2'}),
		ca,
		servername: serverName,
	});
	socket.on('error', () => undefined);
	// It may be refused.
	await once(socket, 'secureConnect').catch(() => undefined);
	return socket;
}

/** What a body can hold that takes more memory than its bytes; with as many at once as an API server might send. */
async function bodies({port, ca}: Attack): Promise<TLSSocket[]> {
	const texts = [
		`{"a":[${'[],'.repeat((large - 16) / 3)}[]]}`,
		`{"a":"${'x'.repeat(large - 16)}"}`,
		`{"a":[${'1,'.repeat((large - 16) / 2)}1]}`,
		'['.repeat(large),
		' '.repeat(7 << 20),
	];
	for (let round = 0; round < 3; round++) {
		const client = new Client(port, ca, {maxSockets: 20});
		const statuses = await Promise.all(
			Array.from({length: 40}, async (_, index) =>
				client.call({body: texts[index % texts.length] ?? ''}).then(({status}) => status),
			),
		);
		client.close();
		if (statuses.some(status => ![400, 413, 429].includes(status))) {
			throw new Error(`Answered with ${String(statuses)}`);
		}
	}

	return [];
}

/** Nearly all of a body, and then nothing. */
async function stalls(attack: Attack): Promise<TLSSocket[]> {
	return Promise.all(
		Array.from({length: 40}, async () => {
			const socket = await connected(attack);
			socket.write(headOf({'Content-Length': String(large)}));
			socket.write(Buffer.alloc(large - 1, ' '));
			return socket;
		}),
	);
}

/** Bodies in pieces of one byte, each in a TLS record of its own. */
async function smallPieces(attack: Attack): Promise<TLSSocket[]> {
	return Promise.all(
		Array.from({length: 10}, async () => {
			const socket = await connected(attack);
			socket.write(headOf({'Transfer-Encoding': 'chunked'}));
			const piece = Buffer.from('1\r\n \r\n');
			for (let bytes = 0; bytes < 60_000 && !socket.destroyed; bytes++) {
				if (!socket.write(piece)) {
					await Promise.race([once(socket, 'drain'), once(socket, 'close')]);
				}
			}

			return socket;
		}),
	);
}

/** Answers as large as a review can make them, which nobody reads. */
async function unreadAnswers(attack: Attack): Promise<TLSSocket[]> {
	const uid = JSON.stringify(reviewOf(podOf([{}]), {uid: 'x'.repeat(large - 4096)}));
	const empty = JSON.stringify(reviewOf(podOf([])));
	const containers = empty.replace(
		'"containers":[]',
		`"containers":[${Array.from({length: 30_000}, () => '{"resources":{"limits":{"cpu":1}}}').join(',')}]`,
	);
	const sockets: TLSSocket[] = [];
	for (let index = 0; index < 100; index++) {
		const socket = await connected(attack);
		const body = index % 2 === 0 ? uid : containers;
		socket.write(headOf({'Content-Length': String(body.length)}));
		socket.write(body);
		// The answer has begun, or the connection has ended.
		await Promise.race([once(socket, 'readable'), once(socket, 'close')]);
		sockets.push(socket);
	}

	return sockets;
}

/** As many requests as one TLS record holds, on all connections. */
async function pipelines(attack: Attack): Promise<TLSSocket[]> {
	return Promise.all(
		Array.from({length: 256}, async () => {
			const socket = await connected(attack);
			socket.write('GET / HTTP/1.1\r\nHost:x\r\n\r\n'.repeat(650));
			return socket;
		}),
	);
}

/** More connections than there may be, each with a body that holds a place. */
async function crowds(attack: Attack): Promise<TLSSocket[]> {
	const sockets: TLSSocket[] = [];
	for (let index = 0; index < 300; index++) {
		const socket = await connected(attack);
		socket.write(
			headOf({
				'Content-Length': String(large),
				...Object.fromEntries(Array.from({length: 100}, (_, header) => [`X-${header}`, 'x'.repeat(100)])),
			}),
		);
		socket.write(Buffer.alloc(15_000, ' '));
		sockets.push(socket);
	}

	return sockets;
}

for (const [title, attack] of Object.entries({
	'large and odd bodies': bodies,
	'bodies that stall': stalls,
	'bodies in pieces of one byte': smallPieces,
	'answers that nobody reads': unreadAnswers,
	'hundreds of requests at once': pipelines,
	'more connections than it takes': crowds,
})) {
	test.serial(`memory stays below 200 MiB and requests are answered: ${title}`, async t => {
		t.timeout(300_000);
		const issuer = await makeIssuer();
		const secret = new MountedSecret(await directoryOf(t));
		await secret.write(await issuer.issue());
		const running = processOf(t, {
			WEBHOOK_PORT: '0',
			WEBHOOK_PROBE_PORT: '0',
			WEBHOOK_CERT_DIR: secret.directory,
			WEBHOOK_DRAIN_DELAY: '1ms',
		});
		const port = Number((await running.event('ready'))['port']);
		const sockets = await attack({port, ca: issuer.ca});
		const review = JSON.stringify(reviewOf(podOf([{resources: {limits: {cpu: '2'}, requests: {cpu: '2'}}}])));
		const client = new Client(port, issuer.ca);
		t.teardown(() => client.close());
		for (let asked = 0; asked < 20; asked++) {
			t.is((await client.call({body: review})).status, 200);
		}

		const resident = await mostResident(running.pid);
		t.log(`${Math.round(resident)} MiB at most`);
		t.true(resident < 200, `${Math.round(resident)} MiB`);
		for (const socket of sockets) {
			socket.destroy();
		}
	});
}

test('SIGUSR1 opens no inspector', async t => {
	const issuer = await makeIssuer();
	const secret = new MountedSecret(await directoryOf(t));
	await secret.write(await issuer.issue());
	const running = processOf(t, {
		WEBHOOK_PORT: '0',
		WEBHOOK_PROBE_PORT: '0',
		WEBHOOK_CERT_DIR: secret.directory,
		WEBHOOK_DRAIN_DELAY: '50ms',
	});
	const {probePort} = await running.event('ready');
	t.false((await caughtSignals(running.pid)).includes('SIGUSR1'));
	running.kill('SIGUSR1');
	t.is((await fetch(`http://127.0.0.1:${String(probePort)}/readyz`)).status, 200);
	running.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
	t.notRegex(running.stderr(), /Debugger/);
});

/** `cloud-api-adaptor webhook` as a container runs it. */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {readFile} from 'node:fs/promises';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {connect as connectTls} from 'node:tls';
import {fileURLToPath} from 'node:url';
import test, {type ExecutionContext} from 'ava';
import {directoryOf} from '../support/directory.ts';
import {caughtSignals, nodeOptions} from '../support/node-options.ts';
import {Client, makeIssuer, MountedSecret, serverName} from './harness.ts';
import {memoryAnnotation, patched, patchIn, podOf, responseIn, reviewOf, vcpusAnnotation} from './pods.ts';

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

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
		env: {PATH: process.env['PATH'], HOME: '/nonexistent', ...env},
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

test('it reads its settings, answers, and SIGTERM ends it with 0 after a drain', async t => {
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
	t.like(await running.event('stopping'), {reason: 'The process was told to stop by SIGTERM'});
	t.notRegex(running.stderr(), /"level":"(?:warn|error|fatal)"/);
});

test('without a certificate, and with settings that are wrong, it ends and says what to do', async t => {
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

test('whatever is sent, it stays below 200 MiB and goes on answering', async t => {
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
	const {port} = await running.event('ready');
	const review = JSON.stringify(reviewOf(podOf([{resources: {limits: {cpu: '2'}, requests: {cpu: '2'}}}])));
	const large = 3 << 20;
	const bodies = [
		`{"a":[${'[],'.repeat((large - 16) / 3)}[]]}`,
		`{"a":"${'x'.repeat(large - 16)}"}`,
		`{"a":[${'1,'.repeat((large - 16) / 2)}1]}`,
		'['.repeat(large),
		' '.repeat(7 << 20),
	];
	// Many at a time, several times; a caller that is refused while it sends may see its connection end.
	for (let round = 0; round < 3; round++) {
		const client = new Client(Number(port), issuer.ca, {maxSockets: 20});
		await Promise.all(
			Array.from({length: 40}, async (_, index) =>
				client.call({body: bodies[index % bodies.length] ?? ''}).catch(() => undefined),
			),
		);
		client.close();
	}

	// Those that send nearly all of a body, and then nothing.
	const stalled = await Promise.all(
		Array.from({length: 40}, async () => {
			const socket = connectTls({host: '127.0.0.1', port: Number(port), ca: issuer.ca, servername: serverName});
			socket.on('error', () => undefined);
			await once(socket, 'secureConnect');
			socket.write(
				`POST /mutate-v1-pod HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${large}\r\n\r\n`,
			);
			socket.write(Buffer.alloc(large - 1, ' '));
			return socket;
		}),
	);
	const client = new Client(Number(port), issuer.ca);
	t.teardown(() => client.close());
	for (let asked = 0; asked < 20; asked++) {
		t.is((await client.call({body: review})).status, 200);
	}

	const resident = await mostResident(running.pid);
	t.log(`${Math.round(resident)} MiB at most`);
	t.true(resident < 200, `${Math.round(resident)} MiB`);
	for (const socket of stalled) {
		socket.destroy();
	}
});

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

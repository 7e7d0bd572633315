import {createServer} from 'node:net';
import {once} from 'node:events';
import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import {serveProbes} from '../../src/health/probes.ts';
import {freePort} from '../support/port.ts';
import {recordingLog} from '../support/recording-log.ts';

async function take(port: number): Promise<{give: () => Promise<void>}> {
	const server = createServer();
	server.listen(port, '127.0.0.1');
	await once(server, 'listening');
	return {
		async give() {
			server.close();
			await once(server, 'close');
		},
	};
}

async function answered(t: ExecutionContext, port: number): Promise<void> {
	let status: number | undefined;
	await until(async () => {
		status = await fetch(`http://127.0.0.1:${port}/startup`).then(
			response => response.status,
			() => undefined,
		);
		return status !== undefined;
	});
	t.is(status, 200);
}

async function until(isSo: () => boolean | Promise<boolean>): Promise<void> {
	const giveUpAt = performance.now() + 60_000;
	while (!(await isSo())) {
		if (performance.now() > giveUpAt) {
			throw new Error(`It never came to be that ${String(isSo)}`);
		}

		await turn();
	}
}

test('the probes of kubelet are answered with 200, other paths are not', async t => {
	const port = await freePort();
	await using _probes = serveProbes({port, assertHealthy: async () => undefined, log: recordingLog()});
	await answered(t, port);
	const status = async (path: string, method = 'GET'): Promise<number> =>
		(await fetch(`http://127.0.0.1:${port}${path}`, {method})).status;
	t.deepEqual(
		await Promise.all([
			status('/healthz'),
			status('/startup', 'HEAD'),
			status('/startup', 'POST'),
			status('/'),
			status('/startup/x'),
		]),
		[200, 200, 405, 404, 404],
	);
});

test('a port in use is logged once, and served as soon as it is free', async t => {
	const port = await freePort();
	const {give} = await take(port);
	const log = recordingLog();
	await using _probes = serveProbes({port, assertHealthy: async () => undefined, log, retryMs: [1, 2]});
	await until(() => log.lines.length >= 3);
	await give();
	await answered(t, port);
	t.is(log.lines.filter(({level}) => level === 'warn').length, 1);
});

test('disposing frees the port, also while a client holds a connection, and ends the wait for one', async t => {
	const port = await freePort();
	const probes = serveProbes({port, assertHealthy: async () => undefined, log: recordingLog()});
	await answered(t, port);
	await probes[Symbol.asyncDispose]();
	await probes[Symbol.asyncDispose]();
	const other = await take(port);
	const waiting = serveProbes({
		port,
		assertHealthy: async () => undefined,
		log: recordingLog(),
		retryMs: [60_000, 60_000],
	});
	await waiting[Symbol.asyncDispose]();
	await other.give();
	t.pass();
});

test('when nobody answers at the hypervisor socket the answer is 503 with the reason, logged once', async t => {
	const port = await freePort();
	const log = recordingLog();
	let isReachable = false;
	await using _probes = serveProbes({
		port,
		log,
		assertHealthy: async () => (isReachable ? undefined : Promise.reject(new Error('Could not connect'))),
	});
	const status = async (): Promise<readonly [number, string]> => {
		const response = await fetch(`http://127.0.0.1:${port}/healthz`);
		return [response.status, await response.text()];
	};
	await until(async () =>
		status().then(
			() => true,
			() => false,
		),
	);
	t.deepEqual(await status(), [503, 'Could not connect\n']);
	isReachable = true;
	t.deepEqual(await status(), [200, 'ok\n']);
	t.is(log.lines.filter(({level}) => level === 'error').length, 1);
});

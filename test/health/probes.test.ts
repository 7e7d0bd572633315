import {createServer, type AddressInfo} from 'node:net';
import {once} from 'node:events';
import test, {type ExecutionContext} from 'ava';
import {serveProbes} from '../../src/health/probes.ts';
import {recordingLog} from '../support/recording-log.ts';

async function take(port = 0): Promise<{port: number; give: () => Promise<void>}> {
	const server = createServer();
	server.listen(port, '127.0.0.1');
	await once(server, 'listening');
	return {
		port: (server.address() as AddressInfo).port,
		async give() {
			server.close();
			await once(server, 'close');
		},
	};
}

async function freePort(): Promise<number> {
	const {port, give} = await take();
	await give();
	return port;
}

async function answered(t: ExecutionContext, port: number): Promise<void> {
	let status: number | undefined;
	while (status === undefined) {
		status = await fetch(`http://127.0.0.1:${port}/startup`).then(response => response.status, () => undefined);
	}

	t.is(status, 200);
}

test('kubelet\'s questions are answered with 200, others are not', async t => {
	const port = await freePort();
	await using _probes = serveProbes({port, log: recordingLog()});
	await answered(t, port);
	const status = async (path: string, method = 'GET'): Promise<number> => (await fetch(`http://127.0.0.1:${port}${path}`, {method})).status;
	t.deepEqual(await Promise.all([status('/healthz'), status('/startup', 'HEAD'), status('/startup', 'POST'), status('/'), status('/startup/x')]), [200, 200, 405, 404, 404]);
});

test('a port that is taken is told once and served as soon as it is free', async t => {
	const {port, give} = await take();
	const log = recordingLog();
	await using _probes = serveProbes({port, log, retryMs: [1, 2]});
	while (log.lines.length < 3) {
		await new Promise(resolve => {
			setImmediate(resolve);
		});
	}

	await give();
	await answered(t, port);
	t.is(log.lines.filter(({level}) => level === 'warn').length, 1);
});

test('disposing frees the port, also while a client holds a connection, and ends the wait for one', async t => {
	const port = await freePort();
	const probes = serveProbes({port, log: recordingLog()});
	await answered(t, port);
	await probes[Symbol.asyncDispose]();
	await probes[Symbol.asyncDispose]();
	const other = await take(port);
	const waiting = serveProbes({port, log: recordingLog(), retryMs: [60_000, 60_000]});
	await waiting[Symbol.asyncDispose]();
	await other.give();
	t.pass();
});

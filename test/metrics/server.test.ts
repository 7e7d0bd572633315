import {once} from 'node:events';
import {connect, createServer, type Socket} from 'node:net';
import {setImmediate as turn} from 'node:timers/promises';
import test from 'ava';
import {openMetrics, type Metrics} from '../../src/metrics/metrics.ts';
import {serveMetrics} from '../../src/metrics/server.ts';
import {freePort} from '../support/port.ts';
import {recordingLog} from '../support/recording-log.ts';

type Log = ReturnType<typeof recordingLog>;

async function served(log: Log): Promise<void> {
	while (!log.lines.some(({message}) => message === 'metrics are served')) {
		await turn();
	}
}

async function open(): Promise<{metrics: Metrics; port: number}> {
	const port = await freePort();
	const log = recordingLog();
	const at = {host: '127.0.0.1', port};
	const metrics = openMetrics({at, setting: 'METRICS_PORT', component: 'libvirt', version: '1', log});
	await served(log);
	return {metrics, port};
}

test('GET /metrics is answered in the format of Prometheus, anything else is refused', async t => {
	const {metrics, port} = await open();
	await using _ = metrics;
	const response = await fetch(`http://127.0.0.1:${port}/metrics?x=1`);
	t.is(response.status, 200);
	t.is(response.headers.get('content-type'), 'text/plain; version=0.0.4; charset=utf-8');
	t.regex(await response.text(), /^# HELP caa_build_info .+\n# TYPE caa_build_info gauge\ncaa_build_info\{/mv);
	const status = async (path: string, method = 'GET'): Promise<number> =>
		(await fetch(`http://127.0.0.1:${port}${path}`, {method})).status;
	t.deepEqual(
		await Promise.all([status('/'), status('/metrics/'), status('/metric'), status('/metrics', 'POST')]),
		[404, 404, 404, 405],
	);
});

test('connections over the limit are closed, and a scrape succeeds when others have ended', async t => {
	const {metrics, port} = await open();
	await using _ = metrics;
	const sockets: Socket[] = [];
	for (let index = 0; index < 16; index++) {
		const socket = connect(port, '127.0.0.1');
		await once(socket, 'connect');
		sockets.push(socket);
	}

	const one = connect(port, '127.0.0.1').resume();
	one.on('error', () => undefined);
	await once(one, 'close');
	for (const socket of sockets) {
		socket.destroy();
	}

	for (;;) {
		const response = await fetch(`http://127.0.0.1:${port}/metrics`).catch(() => undefined);
		if (response !== undefined) {
			t.is(response.status, 200);
			return;
		}
	}
});

test('a caller that never completes its request is answered and cut off', async t => {
	const {metrics, port} = await open();
	await using _ = metrics;
	const socket = connect(port, '127.0.0.1');
	socket.write('GET /metrics HTTP/1.1\r\n');
	const chunks: Buffer[] = [];
	socket.on('data', (chunk: Buffer) => chunks.push(chunk));
	await once(socket, 'close');
	t.regex(Buffer.concat(chunks).toString(), /^HTTP\/1\.1 408 /v);
});

test('scrapes at the same time share one collection', async t => {
	const port = await freePort();
	const log = recordingLog();
	let collections = 0;
	const gate = Promise.withResolvers<undefined>();
	await using _ = serveMetrics({
		at: {host: '127.0.0.1', port},
		setting: 'METRICS_PORT',
		log,
		async exposition() {
			collections++;
			await gate.promise;
			return {contentType: 'text/plain', text: 'caa_x 1\n'};
		},
	});
	await served(log);
	const socket = connect(port, '127.0.0.1');
	// In one packet, so that all three have arrived when the first is collected.
	socket.write('GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(3));
	while (collections === 0) {
		await turn();
	}

	gate.resolve(undefined);
	let answers = '';
	while (answers.split('caa_x 1\n').length < 4) {
		const [chunk] = (await once(socket, 'data')) as [Buffer];
		answers += chunk.toString();
	}

	socket.destroy();
	t.is(collections, 1);
});

test('a failed collection is answered with 500 and logged once', async t => {
	const port = await freePort();
	const log = recordingLog();
	await using _ = serveMetrics({
		at: {host: '127.0.0.1', port},
		setting: 'METRICS_PORT',
		log,
		async exposition() {
			throw new Error('broken');
		},
	});
	await served(log);
	const scrape = async (): Promise<number> => (await fetch(`http://127.0.0.1:${port}/metrics`)).status;
	t.deepEqual([await scrape(), await scrape()], [500, 500]);
	t.is(log.lines.filter(({message}) => message === 'could not collect the metrics').length, 1);
});

test('a port in use is logged once, and served as soon as it is free', async t => {
	const blocker = createServer().listen(0, '127.0.0.1');
	await once(blocker, 'listening');
	const {port} = blocker.address() as {port: number};
	const log = recordingLog();
	await using _ = serveMetrics({
		at: {host: '127.0.0.1', port},
		setting: 'METRICS_PORT',
		exposition: async () => ({contentType: 'text/plain', text: ''}),
		log,
		retryMs: [1, 2],
	});
	while (log.lines.length < 3) {
		await turn();
	}

	blocker.close();
	await served(log);
	t.deepEqual(
		log.lines.filter(({level}) => level === 'warn').map(({message, fields: {remedy}}) => [message, remedy]),
		[['could not listen on the port of the metrics; trying again', 'Choose another METRICS_PORT.']],
	);
});

/**
 * Compares the relay with a plain TLS byte pipe, in one run on one machine, as ratios: throughput in both directions
 * with messages of 4 KiB to 4 MiB, and the latency that the relay adds to one call. Budget: throughput within 30 %,
 * less than 0.3 ms added per call. `node bench/relay.ts`. Forwarder and client run in a separate process, so that only
 * the work of the relay differs.
 */
import {fork} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm} from 'node:fs/promises';
import {connect, createServer, type Socket} from 'node:net';
import {tmpdir} from 'node:os';
import type {Duplex} from 'node:stream';
import {join} from 'node:path';
import {connect as connectTls, createSecureContext} from 'node:tls';
import {Secret, silentLogger} from '../src/core/log.ts';
import {noObserver} from '../src/core/observer.ts';
import {openIdentity} from '../src/relay/identity.ts';
import {createAgentRelays} from '../src/relay/relay.ts';
import type {ForwarderTls} from '../src/sandbox/ports.ts';
import {encodeFrame, frameType} from '../src/ttrpc/frame.ts';
import {encodeRequest} from '../src/ttrpc/message.ts';
import {answerEmpty, startForwarder} from '../test/support/forwarder.ts';

const address = '127.0.0.1';
const bulkBytes = 256 * 1024 * 1024;
const calls = 3000;
const rounds = 5;
const firstStream = 1;
const uploadStream = 0xff_ff_ff_ff;
const downloadStream = 0x1000_0001;

if (process.send === undefined) {
	await measure();
} else {
	await serve();
}

/**
 * In the child process: the client, and a VM that receives or sends bulk data, or answers calls, depending on the
 * stream of the first frame.
 */
async function serve(): Promise<void> {
	process.on('disconnect', () => process.exit());
	const [task, reply] = [once(process, 'message'), (message: unknown) => process.send?.(message)];
	const [tls] = (await task) as [{serverKey: string; serverCert: string; clientCa: string}];
	const forwarder = await startForwarder({
		tls: {...tls, serverKey: new Secret(tls.serverKey)},
		address,
		onConnection(socket) {
			const begin = (first: Buffer): void => {
				const streamId = first.readUInt32BE(4);
				if (streamId === firstStream) {
					socket.write(encodeFrame({streamId, type: frameType.response, flags: 0}, Buffer.alloc(0)));
					socket.once('data', begin);
					return;
				}

				if (streamId === uploadStream) {
					let left = bulkBytes - first.length;
					socket.on('data', (chunk: Buffer) => {
						left -= chunk.length;
						if (left <= 0) {
							socket.write(encodeFrame({streamId, type: frameType.response, flags: 0}, Buffer.alloc(0)));
						}
					});
				} else if (streamId >= downloadStream) {
					feed(socket, dataFrame(streamId, streamId - downloadStream));
				} else {
					socket.unshift(first);
					answerEmpty(socket);
				}
			};

			socket.once('data', begin);
		},
	});
	reply(forwarder.port);
	process.on(
		'message',
		({path, what, messageBytes}: {path: string; what: 'upload' | 'download' | 'calls'; messageBytes: number}) => {
			void (what === 'calls' ? latency(path) : bulk(path, what, messageBytes)).then(reply);
		},
	);
}

/** Resolves when the whole path is connected. */
async function connected(path: string): Promise<Socket> {
	const socket = connect(path);
	socket.write(request(firstStream));
	await once(socket, 'data');
	return socket;
}

function request(streamId: number): Buffer {
	return encodeFrame(
		{streamId, type: frameType.request, flags: 0},
		encodeRequest({
			service: 'grpc.Health',
			method: 'Check',
			payload: Buffer.alloc(20),
			timeoutNano: 0n,
			metadata: [],
		}),
	);
}

function dataFrame(streamId: number, messageBytes: number): Buffer {
	return encodeFrame({streamId, type: frameType.data, flags: 0}, Buffer.alloc(messageBytes - 10, 1));
}

function feed(socket: Duplex, chunk: Buffer): void {
	let left = bulkBytes;
	const write = (): void => {
		while (left > 0) {
			left -= chunk.length;
			if (!socket.write(chunk)) {
				return;
			}
		}
	};
	socket.on('drain', write);
	write();
}

/** MiB/s through the socket at `path`. */
async function bulk(path: string, what: 'upload' | 'download', messageBytes: number): Promise<number> {
	const socket = await connected(path);
	const startedAt = performance.now();
	if (what === 'upload') {
		socket.write(request(uploadStream));
		feed(socket, dataFrame(uploadStream, messageBytes));
		await once(socket, 'data');
	} else {
		// The stream id encodes the size.
		socket.write(request(downloadStream + messageBytes));
		await new Promise<void>(resolve => {
			let left = bulkBytes;
			socket.on('data', (chunk: Buffer) => {
				left -= chunk.length;
				if (left <= 0) {
					resolve();
				}
			});
		});
	}

	const seconds = (performance.now() - startedAt) / 1000;
	socket.destroy();
	return bulkBytes / 1024 / 1024 / seconds;
}

/** Median duration of a call in milliseconds. */
async function latency(path: string): Promise<number> {
	const socket = await connected(path);
	const times: number[] = [];
	for (let n = 0; n < calls; n++) {
		const bytes = request(2 * n + 3);
		const startedAt = performance.now();
		socket.write(bytes);
		await once(socket, 'data');
		times.push(performance.now() - startedAt);
	}

	socket.destroy();
	return times.toSorted((a, b) => a - b)[Math.floor(calls / 2)] ?? Number.NaN;
}

async function measure(): Promise<void> {
	const directory = await mkdtemp(join(tmpdir(), 'caat-bench-relay-'));
	const child = fork(import.meta.filename);
	await using cleanup = new AsyncDisposableStack();
	cleanup.defer(() => rm(directory, {recursive: true}));
	cleanup.defer(() => child.disconnect());
	const ask = async (message: object): Promise<number> => {
		child.send(message);
		const [answer] = (await once(child, 'message')) as [number];
		return answer;
	};

	const identity = await openIdentity({directory: join(directory, 'tls'), log: silentLogger});
	const issued: ForwarderTls = await identity.issue('podvm-bench');
	const forwarderPort = await ask({
		serverKey: issued.serverKey?.reveal(),
		serverCert: issued.serverCert,
		clientCa: issued.clientCa,
	});
	const relays = createAgentRelays({identity, forwarderPort, observer: noObserver, log: silentLogger});
	const relayPath = join(directory, 'a', 'agent.ttrpc');
	cleanup.use(
		await relays.open(
			{sandboxId: 'bench', instanceName: 'podvm-bench', socketPath: relayPath},
			(async function* () {
				yield address;
			})(),
			AbortSignal.timeout(10_000),
		),
	);

	const barePath = join(directory, 'bare');
	const secureContext = createSecureContext({
		ca: identity.serverCa,
		cert: identity.client.cert,
		key: identity.client.key.reveal(),
	});
	const bare = createServer(socket => {
		const tls = connectTls({host: address, port: forwarderPort, servername: 'podvm-bench', secureContext});
		tls.setNoDelay(true);
		socket
			.on('error', () => undefined)
			.pipe(tls)
			.on('error', () => undefined)
			.pipe(socket);
	}).listen(barePath);
	cleanup.defer(() => {
		bare.close();
	});

	// Alternating, so that other load on the machine affects all kinds of pipes. Each counts with its best result.
	const compare = async (
		request: object,
		best: (...values: number[]) => number,
	): Promise<{bare: number; relay: number}> => {
		const [ofBare, ofRelay]: [number[], number[]] = [[], []];
		for (let round = 0; round < rounds; round++) {
			ofBare.push(await ask({path: barePath, ...request}));
			ofRelay.push(await ask({path: relayPath, ...request}));
		}

		return {bare: best(...ofBare), relay: best(...ofRelay)};
	};

	for (const [what, messageBytes] of ['upload', 'download'].flatMap(what =>
		[4096, 65_536, 1_048_576, 4_194_304].map(messageBytes => [what, messageBytes] as const),
	)) {
		const {bare: mibBare, relay: mibRelay} = await compare({what, messageBytes}, Math.max);
		console.log(
			`${what}, ${messageBytes} B messages: bare ${mibBare.toFixed(0)} MiB/s, relay ${mibRelay.toFixed(0)} MiB/s, ratio ${(mibRelay / mibBare).toFixed(2)}`,
		);
	}

	const {bare: msBare, relay: msRelay} = await compare({what: 'calls', messageBytes: 0}, Math.min);
	console.log(
		`call: bare ${msBare.toFixed(3)} ms, relay ${msRelay.toFixed(3)} ms, added ${(msRelay - msBare).toFixed(3)} ms`,
	);
	console.log(`resident: ${(process.memoryUsage().rss / 1024 / 1024).toFixed(0)} MiB`);
}

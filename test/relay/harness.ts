/** The real relays with an identity in a directory of their own, VMs on loopback addresses that only this process uses. */
import {mkdtemp, rm} from 'node:fs/promises';
import {connect, type Socket} from 'node:net';
import {once} from 'node:events';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {AgentRelays} from '../../src/sandbox/ports.ts';
import {openIdentity, type IdentityFiles, type RelayIdentity} from '../../src/relay/identity.ts';
import {createAgentRelays, type RelayTimings} from '../../src/relay/relay.ts';
import type {TlsOptions} from '../../src/relay/tls-options.ts';
import {createLogger, type LogFields} from '../../src/log.ts';
import {PassThrough} from 'node:stream';
import type {AgentRelaysHarness} from '../contract/agent-relays.ts';
import {startForwarder} from '../support/forwarder.ts';

export type LogLine = LogFields & {readonly level: string; readonly msg: string};

export interface RealHarness extends AgentRelaysHarness {
	readonly identity: RelayIdentity;
	readonly port: number;
	readonly lines: readonly LogLine[];
	/** Everything that was logged, as text. */
	text(): string;
	/** Other relays of the same identity and port. */
	relaysWith(tls: TlsOptions, timings?: Partial<RelayTimings>): AgentRelays;
}

export interface RealHarnessOptions {
	readonly files?: IdentityFiles;
	readonly timings?: Partial<RelayTimings>;
}

let harnesses = 0;

export async function realHarness({files = {}, timings = {}}: RealHarnessOptions = {}): Promise<RealHarness> {
	const directory = await temporaryDirectory();
	const {log, lines, text} = await capturedLog();
	const identity = await openIdentity({directory: join(directory, 'tls'), files, log});
	const net = ++harnesses;
	const address = (n: number): string => `127.${100 + (process.pid >> 8) % 100}.${process.pid & 255}.${(net * 4 + n) % 250 + 1}`;
	const port = await freePort(address(3));
	const relaysWith = (tls: TlsOptions, more: Partial<RelayTimings> = {}): AgentRelays =>
		createAgentRelays({identity, forwarderPort: port, tls, log, timings: {...timings, ...more}});
	return {
		relays: relaysWith({}),
		relaysWith,
		identity,
		directory,
		port,
		lines,
		text,
		address,
		boot: async (at, _instanceName, tls) => startForwarder({tls, address: at, port}),
		async isServed(socketPath) {
			const socket = connect(socketPath);
			try {
				await once(socket, 'connect');
				return true;
			} catch {
				return false;
			} finally {
				socket.destroy();
			}
		},
		async [Symbol.asyncDispose]() {
			await rm(directory, {recursive: true, force: true});
		},
	};
}

export async function temporaryDirectory(): Promise<string> {
	return mkdtemp(join(tmpdir(), 'relay-'));
}

export async function capturedLog(): Promise<{log: Awaited<ReturnType<typeof createLogger>>; lines: LogLine[]; text: () => string}> {
	const stream = new PassThrough();
	const lines: LogLine[] = [];
	let all = '';
	stream.on('data', (chunk: Buffer) => {
		all += chunk.toString();
		for (const line of chunk.toString().trim().split('\n')) {
			lines.push(JSON.parse(line) as LogLine);
		}
	});
	return {log: await createLogger({level: 'trace', format: 'json', destination: stream}), lines, text: () => all};
}

async function freePort(address: string): Promise<number> {
	const {createServer} = await import('node:net');
	const server = createServer().listen(0, address);
	await once(server, 'listening');
	const bound = server.address();
	server.close();
	await once(server, 'close');
	return typeof bound === 'object' && bound !== null ? bound.port : 0;
}

/** A shim's connection, once it is there. */
export async function connectShim(socketPath: string): Promise<Socket> {
	const socket = connect({path: socketPath, allowHalfOpen: true});
	await once(socket, 'connect');
	return socket;
}

/** Exactly so many bytes, or an error when the stream ends before. */
export async function readBytes(stream: NodeJS.ReadableStream, length: number): Promise<Buffer> {
	const chunks: Buffer[] = [];
	let have = 0;
	while (have < length) {
		const chunk = stream.read() as Buffer | null;
		if (chunk === null) {
			await Promise.race([once(stream, 'readable'), once(stream, 'end').then(() => {
				throw new Error(`ended after ${have} of ${length} bytes`);
			})]);
			continue;
		}

		chunks.push(chunk);
		have += chunk.length;
	}

	const all = Buffer.concat(chunks);
	if (all.length > length) {
		stream.unshift(all.subarray(length));
	}

	return all.subarray(0, length);
}

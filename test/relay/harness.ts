/**
 * The real relays with an identity in a directory of their own, VMs on loopback addresses that only this process uses.
 */
import {mkdtemp, rm} from 'node:fs/promises';
import {connect, type Socket} from 'node:net';
import {once} from 'node:events';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {TLSSocket} from 'node:tls';
import type {AgentRelay, AgentRelays, ForwarderTls} from '../../src/sandbox/ports.ts';
import {openIdentity, type IdentityFiles, type RelayIdentity} from '../../src/relay/identity.ts';
import {createAgentRelays} from '../../src/relay/relay.ts';
import type {RelayTimings} from '../../src/relay/redial-policy.ts';
import type {TlsOptions} from '../../src/relay/tls-options.ts';
import {FrameReader, request, statusOf} from './frames.ts';
import {createLogger, type LogFields} from '../../src/core/log.ts';
import {logObserver} from '../../src/observers/log-observer.ts';
import {PassThrough} from 'node:stream';
import {from, type AgentRelaysHarness} from '../contract/agent-relays.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {answerEmpty, startForwarder, type Forwarder, type ForwarderOptions} from '../support/forwarder.ts';
import {freePort} from '../support/port.ts';

export type LogLine = LogFields & {readonly level: string; readonly msg: string};

export interface RealHarness extends AgentRelaysHarness {
	readonly identity: RelayIdentity;
	readonly port: number;
	readonly lines: readonly LogLine[];
	/** Everything that was logged, as text. */
	text(): string;
	/** Other relays of the same identity and port. */
	readonly relaysWith: (tls: TlsOptions, timings?: Partial<RelayTimings>) => AgentRelays;
}

export interface RealHarnessOptions {
	readonly files?: IdentityFiles;
	readonly timings?: Partial<RelayTimings>;
}

/**
 * No attempt begins before the last has failed, and none is given up: what a forwarder accepts is what the relay uses,
 * however slow the machine.
 */
export const patient = {
	hedgeAfterMs: 60_000,
	hedgeHandshakeAfterMs: 60_000,
	connectTimeoutMs: 60_000,
	handshakeTimeoutMs: 60_000,
};

/** A VM may be as slow as the machine is. */
const unsuspecting = {doubtMs: 600_000, answerMs: 600_000, graceMs: 600_000, lateMs: 600_000};

let harnesses = 0;

export async function realHarness({files = {}, timings = {}}: RealHarnessOptions = {}): Promise<RealHarness> {
	const directory = await temporaryDirectory();
	const {log, lines, text} = await capturedLog();
	const identity = await openIdentity({directory: join(directory, 'tls'), files, log});
	const net = ++harnesses;
	const address = (n: number): string =>
		`127.${100 + ((process.pid >> 8) % 100)}.${process.pid & 255}.${((net * 4 + n) % 250) + 1}`;
	const port = await freePort(address(3));
	const relaysWith = (tls: TlsOptions, more: Partial<RelayTimings> = {}): AgentRelays =>
		createAgentRelays({
			identity,
			forwarderPort: port,
			tls,
			observer: logObserver(log),
			log,
			timings: {...timings, ...more},
		});
	return {
		relays: relaysWith({}),
		relaysWith,
		identity,
		directory,
		port,
		lines,
		text,
		address,
		boot: async (at, _instanceName, tls) => startForwarder({tls, address: at, port, onConnection: answerEmpty}),
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
		async call(socketPath) {
			const shim = await connectShim(socketPath);
			try {
				shim.write(request(1, 'Check', {timeoutMs: 60_000}));
				const {code, message} = statusOf(await new FrameReader(shim).next());
				return code === statusCode.ok ? 'answered' : message;
			} finally {
				shim.destroy();
			}
		},
		async [Symbol.asyncDispose]() {
			await rm(directory, {recursive: true, force: true});
		},
	};
}

export async function temporaryDirectory(): Promise<string> {
	return mkdtemp(join(tmpdir(), 'caat-relay-'));
}

export async function capturedLog(): Promise<{
	log: Awaited<ReturnType<typeof createLogger>>;
	lines: LogLine[];
	text: () => string;
}> {
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
	const {promise, resolve, reject} = Promise.withResolvers<Buffer>();
	const take = (): void => {
		for (let chunk = stream.read() as Buffer | null; chunk !== null; chunk = stream.read() as Buffer | null) {
			chunks.push(chunk);
			have += chunk.length;
		}

		if (have >= length) {
			resolve(Buffer.concat(chunks));
		}
	};

	const onEnd = (): void => reject(new Error(`ended after ${have} of ${length} bytes`));
	stream.on('readable', take).once('end', onEnd).once('error', reject);
	take();
	try {
		const all = await promise;
		if (all.length > length) {
			stream.unshift(all.subarray(length));
		}

		return all.subarray(0, length);
	} finally {
		stream.removeListener('readable', take).removeListener('end', onEnd).removeListener('error', reject);
	}
}

/** Gives the event loop turns until the claim holds. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
	const giveUpAt = performance.now() + 60_000;
	while (!(await holds())) {
		if (performance.now() > giveUpAt) {
			throw new Error(`waited in vain for: ${holds.toString()}`);
		}

		await new Promise(resolve => {
			setImmediate(resolve);
		});
	}
}

/** Everything until the stream's end. */
export async function readAll(stream: NodeJS.ReadableStream): Promise<Buffer> {
	const chunks: Buffer[] = [];
	for await (const chunk of stream) {
		chunks.push(chunk as Buffer);
	}

	return Buffer.concat(chunks);
}

/** A relay that is open to a VM that is up. */
export interface Running extends AsyncDisposable {
	readonly harness: RealHarness;
	readonly tls: ForwarderTls;
	readonly forwarder: Forwarder;
	readonly relay: AgentRelay;
	readonly socketPath: string;
	/** A shim's connection and the VM's end of it. */
	converse(): Promise<{shim: Socket; vm: TLSSocket}>;
}

export async function running(
	options: Partial<ForwarderOptions> = {},
	timings: Partial<RelayTimings> = {},
): Promise<Running> {
	await using undo = new AsyncDisposableStack();
	const harness = undo.use(await realHarness({timings: {...patient, again: {}, liveness: unsuspecting, ...timings}}));
	const {relays, directory, address, port} = harness;
	const signal = AbortSignal.timeout(100_000);
	const tls = await relays.issue('podvm-a-12345678', signal);
	const forwarder = undo.use(await startForwarder({tls, address: address(1), port, ...options}));
	const socketPath = join(directory, 'a', 'agent.ttrpc');
	const relay = undo.use(
		await relays.open({sandboxId: 'a', instanceName: 'podvm-a-12345678', socketPath}, from(address(1)), signal),
	);
	const all = undo.move();
	return {
		harness,
		tls,
		forwarder,
		relay,
		socketPath,
		async converse() {
			const shim = await connectShim(socketPath);
			return {shim, vm: await forwarder.accept()};
		},
		[Symbol.asyncDispose]: async () => all.disposeAsync(),
	};
}

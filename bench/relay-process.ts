/**
 * Measures the relay process with 200 pods: its resident memory when idle and after traffic, and the duration of a
 * health check of a pod while the event loop of the daemon is blocked. Budgets: 80 MB, not growing; 5 ms. `node
 * bench/relay-process.ts`, about a minute. VMs and shims are in this process.
 */
import {spawn, spawnSync} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm} from 'node:fs/promises';
import {connect, type Socket} from 'node:net';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {setTimeout as delay} from 'node:timers/promises';
import {silentLogger} from '../src/core/log.ts';
import {noObserver} from '../src/core/observer.ts';
import {RemoteRelays} from '../src/relay-process/remote-relays.ts';
import {encodeFrame, FrameDecoder, frameType} from '../src/ttrpc/frame.ts';
import {encodeRequest} from '../src/ttrpc/message.ts';
import {answerEmpty, startForwarder} from '../test/support/forwarder.ts';
import {freePort} from '../test/support/port.ts';
import {build, nodeOptions, residentOf} from './build.ts';

const pods = 200;
/** The number of calls of a pod with three probes in a day, for all pods together. */
const calls = 200_000;
const inFlight = 32;
const blockedMs = 5000;
const settleMs = 4000;
const budgetMb = 80;
const budgetMs = 5;
const {signal} = new AbortController();

/** In the child process: a daemon with a blocked event loop. */
async function daemon(relaySocket: string): Promise<void> {
	const relays = await RemoteRelays.connect({relaySocket, observer: noObserver, log: silentLogger}, signal);
	await relays.register(await relays.freeDaemonSocket(signal), signal);
	console.error('registered');
	spawnSync('sleep', [String(blockedMs / 1000)]);
	process.exit();
}

async function measure(): Promise<void> {
	const directory = await mkdtemp('/tmp/caa-bench-');
	try {
		await build(directory);
		await run(directory);
	} finally {
		await rm(directory, {recursive: true, force: true});
	}
}

async function run(directory: string): Promise<void> {
	const port = await freePort('127.80.0.1');
	const hypervisorSocket = join(directory, 'h.sock');
	const relay = spawn(process.execPath, [...(await nodeOptions()), join(directory, 'dist/main.js'), 'relay'], {
		env: {
			PATH: process.env['PATH'],
			REMOTE_HYPERVISOR_ENDPOINT: hypervisorSocket,
			FORWARDER_PORT: String(port),
		},
		stdio: ['ignore', 'ignore', 'pipe'],
	});
	const exited = once(relay, 'exit');
	await lineOf(relay.stderr, '"msg":"ready"');
	const relaySocket = join(directory, 'relay.sock');
	const relays = await RemoteRelays.connect({relaySocket, observer: noObserver, log: silentLogger}, signal);
	const resident = async (): Promise<number> => {
		await delay(settleMs);
		const {anonymousMib, fileMib} = await residentOf(relay.pid ?? 0);
		return ((anonymousMib + fileMib) * 2 ** 20) / 1e6;
	};

	console.log(`no pod: ${(await resident()).toFixed(1)} MB`);
	const shims: Shim[] = [];
	for (let n = 0; n < pods; n++) {
		const name = `podvm-${n}`;
		const address = `127.80.${1 + (n >> 7)}.${1 + (n & 127)}`;
		const tls = await relays.issue(name, signal);
		await startForwarder({tls, address, port, onConnection: answerEmpty});
		const socketPath = join(directory, `p${n}`, 'agent.ttrpc');
		await relays.open({sandboxId: name, instanceName: name, socketPath}, only(address), signal);
		shims.push(await Shim.connect(socketPath));
	}

	await Promise.all(shims.map(async shim => shim.check()));
	const idle = await resident();
	console.log(`${pods} pods: ${idle.toFixed(1)} MB, budget ${budgetMb} MB`);
	let left = calls;
	await Promise.all(
		shims.slice(0, inFlight).map(async (_, first) => {
			for (let n = first; left-- > 0; n += inFlight) {
				await shims[n % pods]?.check();
			}
		}),
	);
	const after = await resident();
	console.log(`after ${calls} calls: ${after.toFixed(1)} MB, ratio ${(after / idle).toFixed(2)}`);

	const blocked = spawn(process.execPath, [import.meta.filename, relaySocket], {stdio: ['ignore', 'ignore', 'pipe']});
	await lineOf(blocked.stderr, 'registered');
	const times: number[] = [];
	for (const endAt = performance.now() + blockedMs / 2; performance.now() < endAt;) {
		const startedAt = performance.now();
		await shims[times.length % pods]?.check();
		times.push(performance.now() - startedAt);
	}

	times.sort((a, b) => a - b);
	const at = (share: number): string => (times[Math.floor((times.length - 1) * share)] ?? 0).toFixed(2);
	console.log(
		`daemon blocked: ${times.length} checks, median ${at(0.5)} ms, 99 of 100 within ${at(0.99)} ms, the slowest ${at(1)} ms, budget ${budgetMs} ms`,
	);
	blocked.kill('SIGKILL');
	relay.kill('SIGTERM');
	await exited;
	process.exit();
}

async function lineOf(stream: NodeJS.ReadableStream, text: string): Promise<void> {
	const {promise, resolve} = Promise.withResolvers<undefined>();
	createInterface({input: stream}).on('line', line => {
		if (line.includes(text)) {
			resolve(undefined);
		} else if (line.includes('"level":"fatal"')) {
			console.error(line);
		}
	});
	await promise;
}

/** A shim that makes one call at a time. */
class Shim {
	readonly #socket: Socket;
	readonly #decoder = new FrameDecoder();
	#answered: (() => void) | undefined;
	#stream = 1;

	private constructor(socket: Socket) {
		this.#socket = socket;
		socket.on('data', chunk => {
			if ([...this.#decoder.push(chunk)].length > 0) {
				this.#answered?.();
			}
		});
	}

	static async connect(path: string): Promise<Shim> {
		const socket = connect(path);
		await once(socket, 'connect');
		return new Shim(socket);
	}

	async check(): Promise<void> {
		const {promise, resolve} = Promise.withResolvers<undefined>();
		this.#answered = () => resolve(undefined);
		const streamId = this.#stream;
		this.#stream += 2;
		this.#socket.write(
			encodeFrame(
				{streamId, type: frameType.request, flags: 0},
				encodeRequest({
					service: 'grpc.Health',
					method: 'Check',
					payload: Buffer.alloc(0),
					timeoutNano: 0n,
					metadata: [],
				}),
			),
		);
		await promise;
	}
}

async function* only(address: string): AsyncGenerator<string> {
	yield address;
}

if (process.argv[2] === undefined) {
	await measure();
} else {
	await daemon(process.argv[2]);
}

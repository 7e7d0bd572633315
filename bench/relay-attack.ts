/**
 * What hostile pod VMs do to the calls of the others, in one run: the time of Health/Check through the relay, without and with four VMs that flood
 * their connections. Goal: with them the 99th percentile is at most 10 ms more than without. `node bench/relay-attack.ts`; about a minute.
 * The relay is alone in its process. The VMs that flood have another, with a low priority, so that the machine's other core is there for the measuring.
 */
import {fork, type ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, rm} from 'node:fs/promises';
import {connect, type Socket} from 'node:net';
import {setPriority, tmpdir} from 'node:os';
import {join} from 'node:path';
import type {TLSSocket} from 'node:tls';
import {Secret, silentLogger} from '../src/log.ts';
import {openIdentity} from '../src/relay/identity.ts';
import {createAgentRelays} from '../src/relay/relay.ts';
import {encodeFrame, frameType} from '../src/ttrpc/frame.ts';
import {encodeRequest} from '../src/ttrpc/message.ts';
import {answerEmpty, startForwarder} from '../test/support/forwarder.ts';

const attackers = 4;
const measureMs = 4000;
const port = 15_151;
const openStream = 1;

/** What a hostile VM sends over and over, and how much of it in one TLS record; undefined for as much as fits. */
const attacks = {
	'responses on unknown streams': {frames: tenBytes(0, 7, frameType.response)},
	'reserved types': {frames: tenBytes(0, openStream, 200)},
	'oversized garbage': {frames: tenBytes(0x7f_ff_ff_ff, 7, 99)},
	'data on a stream that is open': {frames: tenBytes(0, openStream, frameType.data)},
	'the same, a TLS record for each': {frames: tenBytes(0, openStream, frameType.data), recordBytes: 10},
	'a TLS record for each unknown response': {frames: tenBytes(0, 7, frameType.response), recordBytes: 10},
} as const satisfies Record<string, {readonly frames: Buffer; readonly recordBytes?: number}>;
type Attack = keyof typeof attacks;

interface Credentials {
	readonly serverKey: string;
	readonly serverCert: string;
	readonly clientCa: string;
}

type Task =
	| {readonly name: 'vm'; readonly address: string; readonly credentials: Credentials; readonly hostile: boolean}
	| {readonly name: 'shim'; readonly path: string}
	| {readonly name: 'attack'; readonly attack: Attack | undefined}
	| {readonly name: 'measure'; readonly path: string};

if (process.send === undefined) {
	await measure();
} else {
	serve();
}

function tenBytes(messageLength: number, streamId: number, type: number): Buffer {
	const frame = Buffer.alloc(10);
	frame.writeUInt32BE(messageLength, 0);
	frame.writeUInt32BE(streamId, 4);
	frame.writeUInt8(type, 8);
	return Buffer.concat(Array.from({length: 6000}, () => frame));
}

function request(streamId: number, service: string, method: string): Buffer {
	return encodeFrame({streamId, type: frameType.request, flags: 0}, encodeRequest({service, method, payload: Buffer.alloc(20), timeoutNano: 0n, metadata: []}));
}

/** In a child: VMs, shims, and the clock. */
function serve(): void {
	process.on('disconnect', () => process.exit());
	let attack: Attack | undefined;
	const hostile = new Set<TLSSocket>();
	const flood = (socket: TLSSocket): void => {
		while (attack !== undefined && !socket.destroyed) {
			const {frames, recordBytes = frames.length}: {readonly frames: Buffer; readonly recordBytes?: number} = attacks[attack];
			let isRoom = true;
			for (let position = 0; position < frames.length; position += recordBytes) {
				isRoom = socket.write(frames.subarray(position, position + recordBytes));
			}

			if (!isRoom) {
				return;
			}
		}
	};

	const run = async (task: Task): Promise<unknown> => {
		switch (task.name) {
			case 'vm': {
				if (task.hostile) {
					setPriority(10);
				}

				await startForwarder({
					tls: {...task.credentials, serverKey: new Secret(task.credentials.serverKey)}, address: task.address, port,
					onConnection: task.hostile ? socket => {
						hostile.add(socket);
						socket.on('drain', () => flood(socket)).once('close', () => hostile.delete(socket)).once('data', () => flood(socket)).once('end', () => socket.destroy());
					} : answerEmpty,
				});
				return undefined;
			}

			case 'shim': {
				const socket = connect(task.path);
				socket.on('error', () => undefined).resume();
				socket.write(request(openStream, 'grpc.AgentService', 'WaitProcess'));
				return undefined;
			}

			case 'attack':
				attack = task.attack;
				for (const socket of hostile) {
					flood(socket);
				}

				return undefined;
			case 'measure':
				return latencies(task.path);
		}
	};
	process.on('message', (task: Task) => void run(task).then(result => process.send?.({result})));
}

/** Milliseconds of each call. */
async function latencies(path: string): Promise<number[]> {
	const socket: Socket = connect(path);
	const times: number[] = [];
	const until = performance.now() + measureMs;
	for (let n = 0; performance.now() < until; n++) {
		const startedAt = performance.now();
		socket.write(request(2 * n + 1, 'grpc.Health', 'Check'));
		await once(socket, 'data');
		times.push(performance.now() - startedAt);
	}

	socket.destroy();
	return times.toSorted((a, b) => a - b);
}

async function ask(child: ChildProcess, task: Task): Promise<unknown> {
	child.send(task);
	const [{result}] = await once(child, 'message') as [{result: unknown}];
	return result;
}

async function measure(): Promise<void> {
	const directory = await mkdtemp(join(tmpdir(), 'caat-bench-attack-'));
	await using cleanup = new AsyncDisposableStack();
	cleanup.defer(() => rm(directory, {recursive: true}));
	const identity = await openIdentity({directory: join(directory, 'tls'), log: silentLogger});
	const relays = createAgentRelays({identity, forwarderPort: port, log: silentLogger});
	const [victim, hostile] = [fork(import.meta.filename), fork(import.meta.filename)];
	cleanup.defer(() => [victim, hostile].forEach(child => child.disconnect()));
	const open = async (n: number, child: ChildProcess): Promise<string> => {
		const [address, instanceName, socketPath] = [`127.0.7.${n + 1}`, `podvm-${n}`, join(directory, String(n), 'agent.ttrpc')];
		const {serverKey, serverCert, clientCa} = await identity.issue(instanceName);
		await ask(child, {name: 'vm', address, credentials: {serverKey: serverKey?.reveal() ?? '', serverCert: serverCert ?? '', clientCa: clientCa ?? ''}, hostile: child === hostile});
		cleanup.use(await relays.open({sandboxId: instanceName, instanceName, socketPath}, (async function* () {
			yield address;
		})(), AbortSignal.timeout(10_000)));
		return socketPath;
	};

	const path = await open(0, victim);
	for (let n = 1; n <= attackers; n++) {
		await ask(hostile, {name: 'shim', path: await open(n, hostile)});
	}

	const report = async (what: string): Promise<number> => {
		const times = await ask(victim, {name: 'measure', path}) as number[];
		const at = (share: number): number => times[Math.min(times.length - 1, Math.floor(times.length * share))] ?? Number.NaN;
		console.log(`${what}: ${times.length} calls, median ${at(0.5).toFixed(2)} ms, p99 ${at(0.99).toFixed(2)} ms, longest ${at(1).toFixed(2)} ms`);
		return at(0.99);
	};

	const quiet = await report('no attack');
	const added: number[] = [];
	for (const attack of Object.keys(attacks) as Attack[]) {
		await ask(hostile, {name: 'attack', attack});
		added.push(await report(attack) - quiet);
		await ask(hostile, {name: 'attack', attack: undefined});
	}

	console.log(`p99 with ${attackers} hostile VMs: at most ${Math.max(...added).toFixed(2)} ms more than without (goal: 10 ms)`);
}

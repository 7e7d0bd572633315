/**
 * A peer on a real unix socket that speaks libvirt's protocol as a test tells it to: what a real daemon does rarely or
 * never. Answers the handshake by itself; everything else waits for the test.
 */
import {once} from 'node:events';
import {mkdtemp, rm} from 'node:fs/promises';
import {connect, createServer, type Server, type Socket} from 'node:net';
import {tmpdir} from 'node:os';
import {remoteError} from '../../src/libvirt/wire/errors.ts';
import {
	encodePacket,
	keepaliveProgram,
	messageStatus,
	messageType,
	PacketDecoder,
	remoteProgram,
	type MessageStatus,
	type MessageType,
	type Packet,
} from '../../src/libvirt/wire/packet.ts';
import type {OpenPipe} from '../../src/libvirt/transport/pipe.ts';
import {procedures, type Domain, type Procedure} from '../../src/libvirt/wire/procedures.ts';
import {encode} from '../../src/libvirt/wire/xdr.ts';

type Answered<Result> = Pick<Procedure<unknown, Result>, 'number' | 'result'>;

export const domain: Domain = {name: 'a', uuid: Buffer.alloc(16, 1), id: 1};

export class Queue<T> {
	readonly #items: T[] = [];
	readonly #takers: Array<(item: T) => void> = [];

	get length(): number {
		return this.#items.length;
	}

	push(item: T): void {
		const taker = this.#takers.shift();
		if (taker === undefined) {
			this.#items.push(item);
		} else {
			taker(item);
		}
	}

	async next(): Promise<T> {
		const item = this.#items.shift();
		return item ?? new Promise(resolve => this.#takers.push(resolve));
	}
}

/** One connection, the daemon's end. */
export class Peer {
	readonly socket: Socket;
	/** Calls and stream packets that the handshake did not answer. */
	readonly received = new Queue<Packet>();
	readonly keepalive = new Queue<Packet>();
	readonly registrations = new Queue<Packet>();
	readonly closed: Promise<unknown>;

	constructor(socket: Socket, answers: ReadonlyMap<number, Buffer>) {
		this.socket = socket;
		this.closed = once(socket, 'close');
		socket.on('error', () => undefined);
		const decoder = new PacketDecoder();
		socket.on('data', chunk => {
			for (const packet of decoder.push(chunk)) {
				if (packet.program === keepaliveProgram) {
					this.keepalive.push(packet);
					continue;
				}

				if (packet.procedure === procedures.connectDomainEventCallbackRegisterAny.number) {
					this.registrations.push(packet);
				}

				const answer = answers.get(packet.procedure);
				if (answer === undefined || packet.type !== messageType.call) {
					this.received.push({...packet, body: Buffer.from(packet.body)});
				} else {
					this.send(packet, messageType.reply, messageStatus.ok, answer);
				}
			}
		});
	}

	reply<Result>(call: Packet, procedure: Answered<Result>, result: Result): void {
		this.send(call, messageType.reply, messageStatus.ok, encode(procedure.result, result));
	}

	/** An answer to a call, or a packet of its stream. */
	send(
		{procedure, serial}: Pick<Packet, 'procedure' | 'serial'>,
		type: MessageType,
		status: MessageStatus,
		body: Uint8Array,
	): boolean {
		return this.socket.write(
			encodePacket({program: remoteProgram, version: 1, procedure, type, serial, status}, body),
		);
	}

	refuse(call: Packet, code: number, message: string, type: MessageType = messageType.reply): void {
		const body = {
			code,
			domain: 10,
			message,
			level: 2,
			dom: null,
			str1: null,
			str2: null,
			str3: null,
			int1: -1,
			int2: -1,
			net: null,
		};
		this.send(call, type, messageStatus.error, encode(remoteError, body));
	}

	lifecycle(event: number, detail: number, dom = domain): void {
		const {number, result} = procedures.domainEventCallbackLifecycle;
		this.send(
			{procedure: number, serial: 0},
			messageType.message,
			messageStatus.ok,
			encode(result, {callbackId: 0, dom, event, detail}),
		);
	}

	ping(): void {
		this.socket.write(
			encodePacket(
				{
					program: keepaliveProgram,
					version: 1,
					procedure: 1,
					type: messageType.message,
					serial: 0,
					status: messageStatus.ok,
				},
				Buffer.alloc(0),
			),
		);
	}
}

function answersOf({authTypes = [0], keepalive = 1}: ScriptedDaemonOptions): Map<number, Buffer> {
	const answer = <Result>({number, result}: Answered<Result>, value: Result): [number, Buffer] => [
		number,
		encode(result, value),
	];
	return new Map([
		answer(procedures.authList, {types: authTypes}),
		answer(procedures.authPolkit, {complete: 1}),
		answer(procedures.connectOpen, undefined),
		answer(procedures.connectSupportsFeature, {supported: keepalive}),
		answer(procedures.connectDomainEventCallbackRegisterAny, {callbackId: 0}),
		answer(procedures.connectGetType, {type: 'SCRIPT'}),
		answer(procedures.connectGetLibVersion, {libVer: 9_001_002n}),
		answer(procedures.connectGetHostname, {hostname: 'scripted'}),
		answer(procedures.connectClose, undefined),
	]);
}

export interface ScriptedDaemonOptions {
	readonly authTypes?: readonly number[];
	readonly keepalive?: number;
	/** Procedures of the handshake that the test answers itself. */
	readonly unanswered?: readonly number[];
}

export interface ScriptedDaemon extends AsyncDisposable {
	readonly openPipe: OpenPipe;
	/** Connections in the order in which they were made. */
	readonly peers: Queue<Peer>;
	/** Stops listening and drops every connection. */
	down(): Promise<void>;
	up(): Promise<void>;
}

export async function startScriptedDaemon(options: ScriptedDaemonOptions = {}): Promise<ScriptedDaemon> {
	const directory = await mkdtemp(`${tmpdir()}/caat-lv-script-`);
	const path = `${directory}/socket`;
	const peers = new Queue<Peer>();
	const sockets = new Set<Socket>();
	const answers = answersOf(options);
	for (const number of options.unanswered ?? []) {
		answers.delete(number);
	}

	let server: Server | undefined;
	const down = async (): Promise<void> => {
		const closing = server;
		server = undefined;
		if (closing !== undefined) {
			closing.close();
			for (const socket of sockets) {
				socket.destroy();
			}

			await once(closing, 'close');
		}
	};

	const up = async (): Promise<void> => {
		server = createServer(socket => {
			sockets.add(socket);
			socket.once('close', () => sockets.delete(socket));
			peers.push(new Peer(socket, answers));
		}).listen(path);
		await once(server, 'listening');
	};

	await up();
	return {
		peers,
		down,
		up,
		openPipe: async signal => {
			const duplex = connect({path});
			await once(duplex, 'connect', {signal});
			const close = (): void => void duplex.destroy();
			return {duplex, description: 'scripted', close, cut: close};
		},
		[Symbol.asyncDispose]: async () => {
			await down();
			await rm(directory, {recursive: true, force: true});
		},
	};
}

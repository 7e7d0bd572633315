/**
 * The forwarder of a pod VM, as seen by a relay: a real TLS server with the certificate and the CA that were issued for
 * the VM. The test decides what it sends on a connection.
 */
import {once} from 'node:events';
import type {AddressInfo, Socket} from 'node:net';
import {createServer, type TLSSocket} from 'node:tls';
import type {ForwarderTls} from '../../src/sandbox/ports.ts';
import {encodeFrame, Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';

export interface ForwarderOptions {
	/** Must contain a server key and certificate. */
	readonly tls: ForwarderTls;
	/** A loopback address. */
	readonly address: string;
	/** A free port if absent. */
	readonly port?: number;
	readonly maxVersion?: 'TLSv1.2' | 'TLSv1.3';
	/** OpenSSL names. */
	readonly ciphers?: string;
	/** If true (the default), a handshake that the client aborts leaves no half-open connection. */
	readonly allowHalfOpen?: boolean;
	/** Called for each authenticated connection. If absent, `accept()` returns the connections. */
	readonly onConnection?: (socket: TLSSocket) => void;
}

export interface Forwarder extends AsyncDisposable {
	readonly address: string;
	readonly port: number;
	/** Open TCP connections, with or without TLS. */
	readonly open: number;
	/** All TCP connections so far. */
	readonly dialled: number;
	/** All TLS connections so far whose client certificate was accepted. */
	readonly proven: number;
	/** All failed handshakes so far. */
	readonly refused: number;
	/** The next authenticated connection that was not returned yet. */
	accept(): Promise<TLSSocket>;
	/** Resets all TCP connections, like a VM that was destroyed and started again. */
	reset(): void;
	/** Resolves when no TCP connection is open. */
	idle(): Promise<void>;
}

export async function startForwarder({
	tls,
	address,
	port = 0,
	maxVersion,
	ciphers,
	allowHalfOpen = true,
	onConnection,
}: ForwarderOptions): Promise<Forwarder> {
	const waiting: Array<(socket: TLSSocket) => void> = [];
	const ready: TLSSocket[] = [];
	const idle: Array<() => void> = [];
	const open = new Set<Socket>();
	let dialled = 0;
	let proven = 0;
	let refused = 0;
	const server = createServer(
		{
			...(tls.serverKey === undefined ? {} : {key: tls.serverKey.reveal()}),
			...(tls.serverCert === undefined ? {} : {cert: tls.serverCert}),
			...(tls.clientCa === undefined ? {} : {ca: tls.clientCa}),
			requestCert: true,
			rejectUnauthorized: true,
			allowHalfOpen,
			minVersion: tls.minVersion === 'VersionTLS13' ? 'TLSv1.3' : 'TLSv1.2',
			...(maxVersion === undefined ? {} : {maxVersion}),
			...(ciphers === undefined ? {} : {ciphers}),
		},
		socket => {
			proven++;
			socket.setNoDelay(true);
			socket.on('error', () => undefined);
			const taker = onConnection ?? waiting.shift();
			if (taker === undefined) {
				ready.push(socket);
			} else {
				taker(socket);
			}
		},
	);
	server.on('tlsClientError', () => {
		refused++;
	});
	server.on('connection', (socket: Socket) => {
		dialled++;
		open.add(socket);
		socket.once('close', () => {
			open.delete(socket);
			if (open.size === 0) {
				for (const resolve of idle.splice(0)) {
					resolve();
				}
			}
		});
	});
	server.listen(port, address);
	await once(server, 'listening');
	let closed: Promise<unknown> | undefined;
	return {
		address,
		port: (server.address() as AddressInfo).port,
		get open() {
			return open.size;
		},
		get dialled() {
			return dialled;
		},
		get proven() {
			return proven;
		},
		get refused() {
			return refused;
		},
		async accept() {
			return (
				ready.shift() ??
				new Promise(resolve => {
					waiting.push(resolve);
				})
			);
		},
		reset() {
			for (const socket of open) {
				socket.resetAndDestroy();
			}
		},
		async idle() {
			if (open.size > 0) {
				await new Promise<void>(resolve => {
					idle.push(resolve);
				});
			}
		},
		async [Symbol.asyncDispose]() {
			closed ??= new Promise(resolve => {
				server.close(resolve);
				for (const socket of open) {
					socket.destroy();
				}
			});
			await closed;
		},
	};
}

/** Sends each message back as data of the same stream. */
export function echo(socket: TLSSocket): void {
	const decoder = new FrameDecoder();
	socket.on('data', (chunk: Buffer) => {
		for (const frame of decoder.push(chunk)) {
			if (frame instanceof Frame) {
				socket.write(encodeFrame({streamId: frame.streamId, type: frameType.data, flags: 0}, frame.message));
			}
		}
	});
	socket.once('end', () => socket.end());
}

/** Answers each ttrpc request with an empty message at once, as the kata agent answers a health check. */
export function answerEmpty(socket: TLSSocket): void {
	const decoder = new FrameDecoder();
	socket.on('data', (chunk: Buffer) => {
		for (const frame of decoder.push(chunk)) {
			if (frame instanceof Frame && frame.type === frameType.request) {
				socket.write(
					encodeFrame({streamId: frame.streamId, type: frameType.response, flags: 0}, Buffer.alloc(0)),
				);
			}
		}
	});
	socket.once('end', () => socket.end());
}

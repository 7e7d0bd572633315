/**
 * A TCP proxy that can stop forwarding, and can resume where it stopped. Neither peer is notified, as with a firewall
 * that drops packets.
 */
import {once} from 'node:events';
import {connect, createServer, type Socket} from 'node:net';

export interface Hole extends AsyncDisposable {
	/** All TCP connections so far. */
	readonly dialled: number;
	/** Stops forwarding on all present and future connections. */
	open(): void;
	/** Resumes forwarding, with the data that was sent in the meantime. */
	close(): void;
	/** Stops forwarding on the present connections; later connections are not affected. */
	withhold(): Withheld;
}

/** Connections without forwarding. */
export interface Withheld {
	/** Resumes forwarding, with the data that was sent in the meantime. */
	deliver(): void;
	/** Resets the connections on both sides; data that was sent in the meantime is lost. */
	reset(): void;
}

export interface HoleOptions {
	readonly address: string;
	readonly port: number;
	/** Address of the peer, on the same port. */
	readonly to: string;
}

export async function startHole({address, port, to}: HoleOptions): Promise<Hole> {
	const sockets = new Set<Socket>();
	let isOpen = false;
	let dialled = 0;
	const pass = (from: Socket, other: Socket): void => {
		sockets.add(from);
		from.on('error', () => from.destroy())
			.on('data', (chunk: Buffer) => other.write(chunk))
			.once('end', () => other.end())
			.once('close', () => {
				sockets.delete(from);
				other.destroy();
			});
		if (isOpen) {
			from.pause();
		}
	};

	const server = createServer({allowHalfOpen: true}, socket => {
		dialled++;
		const peer = connect({host: to, port, allowHalfOpen: true});
		pass(socket, peer);
		pass(peer, socket);
	});
	server.listen(port, address);
	await once(server, 'listening');
	return {
		get dialled() {
			return dialled;
		},
		open() {
			isOpen = true;
			for (const socket of sockets) {
				socket.pause();
			}
		},
		close() {
			isOpen = false;
			for (const socket of sockets) {
				socket.resume();
			}
		},
		withhold() {
			const withheld = [...sockets];
			for (const socket of withheld) {
				socket.pause();
			}

			return {
				deliver() {
					for (const socket of withheld) {
						socket.resume();
					}
				},
				reset() {
					for (const socket of withheld) {
						socket.resetAndDestroy();
					}
				},
			};
		},
		async [Symbol.asyncDispose]() {
			const closed = once(server, 'close');
			server.close();
			for (const socket of sockets) {
				socket.destroy();
			}

			await closed;
		},
	};
}

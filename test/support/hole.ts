/**
 * A way to a peer on which packets can vanish: a TCP proxy that stops passing anything, and goes on where it stopped.
 * Nobody is told, as of a firewall.
 */
import {once} from 'node:events';
import {connect, createServer, type Socket} from 'node:net';

export interface Hole extends AsyncDisposable {
	/** TCP connections, ever. */
	readonly dialled: number;
	/** Nothing passes any more, on old connections and new ones. */
	open(): void;
	/** Everything passes again, and what was sent meanwhile. */
	close(): void;
	/** Nothing passes any more on the connections of now; new ones pass. */
	withhold(): Withheld;
}

/** Connections on which nothing passes. */
export interface Withheld {
	/** Delivers what was sent meanwhile; everything passes again. */
	deliver(): void;
	/** Resets the connections on both sides; what was sent meanwhile is lost. */
	reset(): void;
}

export interface HoleOptions {
	readonly address: string;
	readonly port: number;
	/** The peer's address; its port is the same. */
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

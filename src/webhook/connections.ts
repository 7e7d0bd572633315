/**
 * Shares the connections of a server between the addresses of its callers. Node's `maxConnections` would turn away
 * whoever comes last, which lets one caller shut out all others: here the address with the most connections makes way.
 * Knows no TLS.
 */
import type {IncomingMessage, ServerResponse} from 'node:http';
import type {Socket} from 'node:net';

interface Connection {
	readonly socket: Socket;
	/** Without a request. */
	readonly isIdle: boolean;
}

export class Connections {
	readonly #most: number;
	/**
	 * By the caller's address and port, since TLS wraps a connection in another object. The one that has not changed
	 * for longest comes first.
	 */
	readonly #open = new Map<string, Connection>();

	constructor(most: number) {
		this.#most = most;
	}

	/**
	 * Takes a new connection. If it is one too many, the address with the most connections loses one: the longest idle,
	 * or else the oldest.
	 */
	admit(socket: Socket): void {
		const key = keyOf(socket);
		this.#open.set(key, {socket, isIdle: true});
		socket.once('close', () => {
			if (this.#open.get(key)?.socket === socket) {
				this.#open.delete(key);
			}
		});
		if (this.#open.size > this.#most) {
			const [most = []] = [
				...Map.groupBy(this.#open.entries(), ([, connection]) => connection.socket.remoteAddress).values(),
			].toSorted((a, b) => b.length - a.length);
			const [victim, connection] = most.find(([, {isIdle}]) => isIdle) ?? most[0] ?? [key, {socket}];
			this.#open.delete(victim);
			connection.socket.destroy();
		}
	}

	/**
	 * Marks the connection of a request as in use until the answer has been sent. A connection that sends a request
	 * before it has the answer to the last one is ended: no API server and no kubelet does that, and a thousand small
	 * requests fit into one packet.
	 *
	 * @returns whether the request may be answered
	 */
	use({socket}: IncomingMessage, response: ServerResponse): boolean {
		const key = keyOf(socket);
		const connection = this.#open.get(key);
		if (connection?.isIdle !== true) {
			socket.destroy();
			const {parser} = socket as {parser?: {onIncoming: unknown} | null};
			if (parser) {
				// Node would keep a request and a response for all that it has received already. Not in its documented
				// interface, and only about memory.
				parser.onIncoming = () => 0;
			}

			return false;
		}

		this.#change(key, connection.socket, false);
		response.once('close', () => this.#change(key, connection.socket, true));
		return true;
	}

	#change(key: string, socket: Socket, isIdle: boolean): void {
		if (this.#open.get(key)?.socket === socket) {
			this.#open.delete(key);
			this.#open.set(key, {socket, isIdle});
		}
	}
}

function keyOf({remoteAddress, remotePort}: Socket): string {
	return `${String(remoteAddress)} ${String(remotePort)}`;
}

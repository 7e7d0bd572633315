/**
 * Shares the connections of a server among the addresses of its callers. `maxConnections` of Node would refuse the
 * newest, so one caller could shut out all others. Here the address with the most connections loses one. Does not know
 * TLS.
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
	 * By address and port of the caller, because TLS wraps a connection in another object. Sorted: the connection whose
	 * state has not changed for the longest time is first.
	 */
	readonly #open = new Map<string, Connection>();

	constructor(most: number) {
		this.#most = most;
	}

	/**
	 * Adds a new connection. If there are too many, the address with the most connections loses one: the one that was
	 * idle for the longest time, or the oldest one if none is idle.
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
	 * Marks the connection of a request as used until the answer has been sent. A connection that sends a request
	 * before it has the last answer is ended: API servers and kubelets never do that, and a thousand small requests fit
	 * into one packet.
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
				// Otherwise Node would keep a request and a response for everything that it has already received. This
				// is not in its documented interface, and only saves memory.
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

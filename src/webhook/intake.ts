/**
 * What the webhook takes in at a time: bytes of one body, bytes of all unfinished bodies together, and connections.
 * Each is small beside the memory that its container may use. A caller that stalls gives way to one that does not: the
 * API server sends a review whole within milliseconds.
 */
import type {IncomingMessage} from 'node:http';
import type {Socket} from 'node:net';

export interface IntakeLimits {
	/** Of one body. */
	readonly bodyBytes: number;
	/** Of all bodies that have not ended. */
	readonly unfinishedBytes: number;
	readonly connections: number;
}

export type Refusal = 'too large' | 'too many bytes';

interface Unfinished {
	bytes: number;
	readonly refuse: (refusal: Refusal) => void;
}

export class Intake {
	readonly #limits: IntakeLimits;
	/** Oldest first. */
	readonly #unfinished = new Set<Unfinished>();
	/** By the caller's address and port: TLS wraps a connection in another object. */
	readonly #connections = new Map<string, Socket>();
	/** Of them those without a request, the one that has waited longest first. */
	readonly #idle = new Set<string>();
	#bytes = 0;

	constructor(limits: IntakeLimits) {
		this.#limits = limits;
	}

	/**
	 * Of a new connection: one too many ends the one that has been of no use for longest, and is ended itself when all
	 * are of use.
	 */
	admit(socket: Socket): void {
		const key = keyOf(socket);
		this.#connections.set(key, socket);
		socket.once('close', () => {
			if (this.#connections.get(key) === socket) {
				this.#connections.delete(key);
				this.#idle.delete(key);
			}
		});
		if (this.#connections.size > this.#limits.connections) {
			const [longestIdle = key] = this.#idle;
			this.#idle.delete(longestIdle);
			this.#connections.get(longestIdle)?.destroy();
		}

		if (!socket.destroyed) {
			this.#idle.add(key);
		}
	}

	/** A request has come on the connection. @returns to be disposed when it is answered */
	use(socket: Socket): Disposable {
		const key = keyOf(socket);
		this.#idle.delete(key);
		return {
			[Symbol.dispose]: () => {
				if (!socket.destroyed && this.#connections.has(key)) {
					this.#idle.add(key);
				}
			},
		};
	}

	/**
	 * @returns the body, or why it is not read to its end
	 * @throws when the connection ends before the body does
	 */
	async read(request: IncomingMessage): Promise<Buffer | Refusal> {
		if (Number(request.headers['content-length'] ?? 0) > this.#limits.bodyBytes) {
			return 'too large';
		}

		const {promise: refused, resolve: refuse} = Promise.withResolvers<Refusal>();
		const body: Unfinished = {bytes: 0, refuse};
		this.#unfinished.add(body);
		try {
			return await Promise.race([refused, this.#readAll(request, body)]);
		} finally {
			this.#forget(body);
		}
	}

	async #readAll(request: IncomingMessage, body: Unfinished): Promise<Buffer | Refusal> {
		const chunks: Buffer[] = [];
		// Not destroyed when it is left: the refusal has to go out on the same socket.
		for await (const chunk of request.iterator({destroyOnReturn: false}) as AsyncIterable<Buffer>) {
			if (body.bytes + chunk.length > this.#limits.bodyBytes) {
				return 'too large';
			}

			if (!this.#unfinished.has(body)) {
				return 'too many bytes';
			}

			body.bytes += chunk.length;
			this.#bytes += chunk.length;
			chunks.push(chunk);
			this.#makeRoom();
		}

		return Buffer.concat(chunks);
	}

	/** The oldest body gives way: what has not come by now stalls. */
	#makeRoom(): void {
		for (const oldest of this.#unfinished) {
			if (this.#bytes <= this.#limits.unfinishedBytes) {
				return;
			}

			this.#forget(oldest);
			oldest.refuse('too many bytes');
		}
	}

	#forget(body: Unfinished): void {
		if (this.#unfinished.delete(body)) {
			this.#bytes -= body.bytes;
		}
	}
}

function keyOf({remoteAddress, remotePort}: Socket): string {
	return `${String(remoteAddress)} ${String(remotePort)}`;
}

/**
 * Limits the memory of requests: the bytes of one body, and the bytes of all unfinished bodies and unread answers
 * together. If there are too many bytes, the oldest (stalled) requests are dropped first: the API server sends a review
 * and reads its answer within milliseconds.
 */
import type {IncomingMessage, ServerResponse} from 'node:http';

export interface IntakeLimits {
	/** Maximum bytes of one body. */
	readonly bodyBytes: number;
	/** Maximum bytes of all unfinished bodies and unsent answers. */
	readonly unfinishedBytes: number;
}

export type Refusal = 'too large' | 'too many bytes';

interface Share {
	bytes: number;
	readonly giveWay: () => void;
}

const firstBytes = 16 << 10;

export class Intake {
	readonly #limits: IntakeLimits;
	/** Oldest first. */
	readonly #shares = new Set<Share>();
	#bytes = 0;

	constructor(limits: IntakeLimits) {
		this.#limits = limits;
	}

	/**
	 * The rest of a refused body is read and discarded.
	 *
	 * @returns the body, or why it is refused
	 * @throws if the connection ends before the body
	 */
	async read(request: IncomingMessage): Promise<Buffer | Refusal> {
		const {promise, resolve, reject} = Promise.withResolvers<Buffer | Refusal>();
		let body = Buffer.alloc(0);
		let length = 0;
		const refuse = (refusal: Refusal): void => {
			this.#release(share);
			body = Buffer.alloc(0);
			resolve(refusal);
		};
		const share = this.#open(() => refuse('too many bytes'));
		if (Number(request.headers['content-length'] ?? 0) > this.#limits.bodyBytes) {
			refuse('too large');
		}

		// Copied, and counted by its allocation: a chunk of one byte takes hundreds as a separate object.
		request.on('data', (chunk: Buffer) => {
			if (!this.#shares.has(share)) {
				return;
			}

			const needed = length + chunk.length;
			if (needed > this.#limits.bodyBytes) {
				refuse('too large');
				return;
			}

			if (needed > body.length) {
				const larger = Buffer.allocUnsafeSlow(
					Math.min(this.#limits.bodyBytes, Math.max(firstBytes, needed, 2 * body.length)),
				);
				body.copy(larger, 0, 0, length);
				const more = larger.length - body.length;
				body = larger;
				this.#grow(share, more);
			}

			// This one may have been dropped.
			length += chunk.copy(body, length);
		});
		request.once('end', () => resolve(body.subarray(0, length)));
		request.once('close', () => reject(new Error('The connection ended before the body was complete')));
		try {
			return await promise;
		} finally {
			this.#release(share);
		}
	}

	/** Counts an answer until it has been sent. If it is dropped, its connection ends. */
	hold(response: ServerResponse, answer: Buffer): void {
		const share = this.#open(() => response.socket?.destroy());
		response.once('close', () => this.#release(share));
		this.#grow(share, answer.length);
	}

	#open(giveWay: () => void): Share {
		const share = {bytes: 0, giveWay};
		this.#shares.add(share);
		return share;
	}

	/** Drops the oldest: what was not sent or read by now is stalled. */
	#grow(share: Share, bytes: number): void {
		share.bytes += bytes;
		this.#bytes += bytes;
		for (const oldest of this.#shares) {
			if (this.#bytes <= this.#limits.unfinishedBytes) {
				return;
			}

			this.#release(oldest);
			oldest.giveWay();
		}
	}

	#release(share: Share): void {
		if (this.#shares.delete(share)) {
			this.#bytes -= share.bytes;
		}
	}
}

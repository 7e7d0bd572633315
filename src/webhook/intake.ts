/**
 * Bounds the memory of the webhook's requests: bytes of one body, and bytes of all unfinished bodies and unread answers
 * together. A caller that stalls gives way to one that does not: the API server sends a review and reads its answer
 * within milliseconds.
 */
import type {IncomingMessage, ServerResponse} from 'node:http';

export interface IntakeLimits {
	/** Of one body. */
	readonly bodyBytes: number;
	/** Of all bodies that have not ended and all answers that have not been sent. */
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
	 * What comes after a refusal is read and discarded.
	 *
	 * @returns the body, or why it is refused
	 * @throws when the connection ends before the body does
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

		// Copied, and counted by what is allocated: a piece of one byte takes hundreds as an object of its own.
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

			// It may have been this one that gave way.
			length += chunk.copy(body, length);
		});
		request.once('end', () => resolve(body.subarray(0, length)));
		request.once('close', () => reject(new Error('The connection ended before the body did')));
		try {
			return await promise;
		} finally {
			this.#release(share);
		}
	}

	/** Counts an answer until it has been sent. When it has to give way, its connection ends. */
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

	/** The oldest give way: what has not been sent or read by now stalls. */
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

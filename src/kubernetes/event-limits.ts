/**
 * Limits the number of events: a token bucket for each pod and one for all. Pure: the caller passes the time, in
 * milliseconds of a monotonic clock.
 */

export interface BucketSize {
	readonly burst: number;
	/** Time until one more is allowed. */
	readonly refillMs: number;
}

/** The limit of client-go for each object (tools/record, EventSourceObjectSpamFilter). */
export const defaultPerPod: BucketSize = {burst: 25, refillMs: 300_000};
/** A failing host can cause events for all pods at once; the limit protects the API server. */
export const defaultInAll: BucketSize = {burst: 100, refillMs: 1000};

export class Bucket {
	readonly #size: BucketSize;
	#tokens: number;
	#at: number;

	constructor(size: BucketSize, now: number) {
		this.#size = size;
		this.#tokens = size.burst;
		this.#at = now;
	}

	/** Whether a token was available. */
	take(now: number): boolean {
		this.#refill(now);
		if (this.#tokens < 1) {
			return false;
		}

		this.#tokens -= 1;
		return true;
	}

	isFull(now: number): boolean {
		this.#refill(now);
		return this.#tokens >= this.#size.burst;
	}

	#refill(now: number): void {
		this.#tokens = Math.min(this.#size.burst, this.#tokens + (now - this.#at) / this.#size.refillMs);
		this.#at = now;
	}
}

/** Events over the limit of a pod do not use up the limit of all. */
export class EventLimits {
	readonly #perPod: BucketSize;
	readonly #all: Bucket;
	readonly #pods = new Map<string, Bucket>();

	constructor(now: number, perPod = defaultPerPod, inAll = defaultInAll) {
		this.#perPod = perPod;
		this.#all = new Bucket(inAll, now);
	}

	/** @param pod `namespace/name` */
	allows(pod: string, now: number): boolean {
		for (const [name, bucket] of this.#pods) {
			if (bucket.isFull(now)) {
				this.#pods.delete(name); // Forgets the pod, as if it had never caused an event.
			}
		}

		const bucket = this.#pods.get(pod) ?? new Bucket(this.#perPod, now);
		this.#pods.set(pod, bucket);
		return bucket.take(now) && this.#all.take(now);
	}
}

/**
 * How many events may be sent: a bucket for each pod and one for all. Pure: told the time, in milliseconds of a clock
 * that never goes back.
 */

export interface BucketSize {
	readonly burst: number;
	/** One more after this time. */
	readonly refillMs: number;
}

/** As client-go has it for each object (tools/record, EventSourceObjectSpamFilter). */
export const defaultPerPod: BucketSize = {burst: 25, refillMs: 300_000};
/** An unhappy host can make all pods speak at once; the API server has other things to do. */
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

	/** Whether there was one to take. */
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

/** What exceeds a pod's share costs the others nothing. */
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
				this.#pods.delete(name); // As if it had never spoken.
			}
		}

		const bucket = this.#pods.get(pod) ?? new Bucket(this.#perPod, now);
		this.#pods.set(pod, bucket);
		return bucket.take(now) && this.#all.take(now);
	}
}

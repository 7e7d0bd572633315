/**
 * Chooses the next VNI to try. Only the kernel knows which VNIs are free in all namespaces of the node: creating a
 * device reserves its VNI, and the kernel refuses a second device. This class avoids conflicts within this process, and
 * makes good guesses.
 */
import {AdaptorError} from '../core/errors.ts';

/** RFC 7348, section 5: 24 bits. */
const maxVni = 0xff_ff_ff;
/** Size of the range of VNIs: many more than pods on a node, so that a guess is nearly always free. */
const maxSpan = 1 << 16;
/** Consecutive refusals before giving up. If half of the range is in use, the probability is 1 in 10^19. */
const maxAttempts = 64;

/** The range of VNIs that can be reserved. */
export function vniRange(lowest: number): {readonly lowest: number; readonly highest: number} {
	return {lowest, highest: Math.min(lowest + maxSpan - 1, maxVni)};
}

export interface VniAttempt {
	readonly vni: number;
	/** Call this if the kernel refused the VNI. Returns the next VNI to try, or throws 'resource-exhausted'. */
	another(): VniAttempt;
}

export class VniAllocator {
	readonly #min: number;
	readonly #span: number;
	readonly #random: () => number;
	readonly #taken = new Set<number>();
	#cursor: number;

	/**
	 * @param min the lowest VNI to use
	 * @param random like Math.random: chooses the start, and the position after a refusal. Counting from the lowest VNI
	 * would make every restart, and every second daemon, try all VNIs in use one by one.
	 */
	constructor(min: number, random: () => number) {
		this.#min = min;
		this.#span = vniRange(min).highest - min + 1;
		this.#random = random;
		this.#cursor = this.#anywhere();
	}

	/** Keeps a VNI from other callers until `release`. @throws 'resource-exhausted' */
	take(): VniAttempt {
		return this.#attempt(new Set());
	}

	/** Marks a VNI that is already reserved. */
	adopt(vni: number): void {
		this.#taken.add(vni);
	}

	release(vni: number): void {
		this.#taken.delete(vni);
	}

	#attempt(refused: Set<number>): VniAttempt {
		const vni = refused.size < maxAttempts ? this.#next(refused) : undefined;
		if (vni === undefined) {
			throw new AdaptorError({
				code: 'resource-exhausted',
				what: 'This node has no free VNI',
				where: {lowest: this.#min, highest: this.#min + this.#span - 1, refused: refused.size},
				remedy: 'Remove unused tunnels ("ip -d link show type vxlan" in each network namespace), or set VXLAN_MIN_ID to another range.',
			});
		}

		this.#taken.add(vni);
		return {
			vni,
			another: () => {
				this.#taken.delete(vni);
				refused.add(vni);
				// Another program probably uses the next VNIs, too.
				this.#cursor = this.#anywhere();
				return this.#attempt(refused);
			},
		};
	}

	/**
	 * The next VNI from the cursor that is neither taken nor refused. The cursor advances, so that a released VNI is
	 * not reused at once.
	 */
	#next(refused: ReadonlySet<number>): number | undefined {
		for (let step = 0; step < this.#span; step++) {
			const vni = this.#min + this.#cursor;
			this.#cursor = (this.#cursor + 1) % this.#span;
			if (!this.#taken.has(vni) && !refused.has(vni)) {
				return vni;
			}
		}

		return undefined;
	}

	#anywhere(): number {
		return Math.floor(this.#random() * this.#span);
	}
}

/**
 * Which VNI to try next. Only the kernel knows which are free on the node, in whatever namespace and of whatever
 * program: a VNI is reserved by making a device with it, and the kernel refuses a second. This keeps calls of this
 * process apart, and guesses well.
 */
import {AdaptorError} from '../core/errors.ts';

/** RFC 7348, section 5: 24 bits. */
const maxVni = 0xff_ff_ff;
/** VNIs in play from the lowest on: many more than pods on a node, so that a guess is nearly always free. */
const maxSpan = 1 << 16;
/** Refusals in a row before giving up: with half the span taken by others it is one in 10^19. */
const maxAttempts = 64;

/** The VNIs that are ever reserved. */
export function vniRange(lowest: number): {readonly lowest: number; readonly highest: number} {
	return {lowest, highest: Math.min(lowest + maxSpan - 1, maxVni)};
}

export interface VniAttempt {
	readonly vni: number;
	/** For a VNI that the kernel refused; gives the next, or throws 'resource-exhausted'. */
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
	 * @param random as Math.random: where to start, and where to go on after a refusal. Counting from the lowest would
	 * make every
	 *   restart, and every second daemon, try all VNIs in use one by one.
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

	/** Notes one that was found reserved. */
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
				what: 'No VNI is free on this node',
				where: {lowest: this.#min, highest: this.#min + this.#span - 1, refused: refused.size},
				remedy: 'Remove tunnels that are left over ("ip -d link show type vxlan" in each network namespace), or set VXLAN_MIN_ID to another range.',
			});
		}

		this.#taken.add(vni);
		return {
			vni,
			another: () => {
				this.#taken.delete(vni);
				refused.add(vni);
				// In the midst of someone else's: the neighbours are likely theirs too.
				this.#cursor = this.#anywhere();
				return this.#attempt(refused);
			},
		};
	}

	/**
	 * The next from the cursor on that is neither taken nor refused. The cursor moves on, so one that is released rests
	 * for a while.
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

/**
 * Connections to the VM that were silent and have been replaced, but on which answers may still arrive. After an
 * outage, TCP delivers the data that was sent before and during it. This takes longer than a new connection, because
 * TCP doubles its retransmission pauses.
 *
 *   retired ── heard ──▶ alive          no time limit any more
 *   retired ── nothing heard for lateMs ──▶ ended
 *   retired, alive ── lost, one too many ──▶ ended
 *   retired, alive ── no call is awaited on it ──▶ closed
 *
 * Nothing is sent on them. Knows no frames.
 */
import {AdaptorError} from '../core/errors.ts';
import type {ConnectionCalls} from './calls.ts';
import type {VmLeg} from './vm-leg.ts';

/**
 * Maximum number per shim session. It limits memory: each connection may hold an incomplete frame and unsent data. An
 * outage leaves one connection. A second outage leaves another one before the first has delivered all answers.
 */
const maxRetired = 2;

export interface RetiredLegsOptions {
	/** Time limit for the first data on a retired connection. */
	readonly lateMs: number;
	/** A connection ended while answers were awaited on it; it is closed already. */
	readonly ended: (calls: ConnectionCalls, reason: Error) => void;
}

interface RetiredLeg {
	readonly calls: ConnectionCalls;
	readonly timer: NodeJS.Timeout;
}

/** Owns its connections. Disposing closes them at once. */
export class RetiredLegs implements Disposable {
	readonly #options: RetiredLegsOptions;
	/** In the order of their retirement. */
	readonly #legs = new Map<VmLeg, RetiredLeg>();

	constructor(options: RetiredLegsOptions) {
		this.#options = options;
	}

	/** Ends the oldest one if there are too many. */
	add(vm: VmLeg, calls: ConnectionCalls): void {
		const {lateMs} = this.#options;
		const timer = setTimeout(
			() => this.#end(vm, `nothing arrived on it for ${lateMs} ms after it was replaced`),
			lateMs,
		);
		this.#legs.set(vm, {calls, timer});
		const [oldest] = this.#legs.keys();
		if (this.#legs.size > maxRetired && oldest !== undefined) {
			this.#end(oldest, 'it was silent, and too many newer connections were replaced too');
		}
	}

	/** The calls of a connection, if it is retired. */
	callsOf(vm: VmLeg): ConnectionCalls | undefined {
		return this.#legs.get(vm)?.calls;
	}

	/** Data arrived on it, so the network path works: the remaining answers will arrive too. */
	heard(vm: VmLeg): void {
		clearTimeout(this.#legs.get(vm)?.timer);
	}

	/** Its answers do not come any more. */
	lost(vm: VmLeg, reason: Error): void {
		const calls = this.#close(vm);
		if (calls !== undefined) {
			this.#options.ended(calls, reason);
		}
	}

	/** Closes connections on which no answer is awaited. */
	closeIdle(): void {
		for (const [vm, {calls}] of this.#legs) {
			if (calls.awaited.size === 0) {
				this.#close(vm);
			}
		}
	}

	/** Pauses or resumes reading from all of them. */
	set isReading(shall: boolean) {
		for (const vm of this.#legs.keys()) {
			vm.isReading = shall;
		}
	}

	[Symbol.dispose](): void {
		for (const vm of this.#legs.keys()) {
			this.#close(vm);
		}
	}

	#end(vm: VmLeg, what: string): void {
		this.lost(vm, new AdaptorError({code: 'unavailable', what}));
	}

	#close(vm: VmLeg): ConnectionCalls | undefined {
		const leg = this.#legs.get(vm);
		clearTimeout(leg?.timer);
		this.#legs.delete(vm);
		vm.destroy();
		return leg?.calls;
	}
}

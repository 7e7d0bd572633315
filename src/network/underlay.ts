/** The node's own address towards the pod VMs: looked up when it is needed, remembered for a while. */
import {isIPv4} from 'node:net';
import {AdaptorError, toError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import type {Iproute2} from './iproute2.ts';
import {workerAddress, type WorkerAddress} from './plan.ts';

/** By name, or by any address in the VMs' subnet. The function is asked until it has answered once. */
export type UnderlaySource =
	{readonly hostInterface: string} | {readonly vmAddress: (signal: AbortSignal) => Promise<string>};

/** A node that gets another address is noticed after this. */
const maxAgeMs = 30_000;
/** Whoever asks may give up earlier; the look-up is shared by all who ask meanwhile. */
const timeoutMs = 20_000;

export class Underlay {
	readonly #iproute2: Iproute2;
	readonly #source: UnderlaySource;
	readonly #life: AbortSignal;
	#vmAddress: string | undefined;
	#known: {readonly address: Promise<WorkerAddress>; readonly since: number} | undefined;

	/** @param life ends a look-up that nobody waits for any more */
	constructor(iproute2: Iproute2, source: UnderlaySource, life: AbortSignal) {
		this.#iproute2 = iproute2;
		this.#source = source;
		this.#life = life;
	}

	async address(signal: AbortSignal): Promise<WorkerAddress> {
		if (signal.aborted) {
			throw toError(signal.reason);
		}

		const now = performance.now();
		if (this.#known === undefined || now - this.#known.since > maxAgeMs) {
			const known = {address: this.#lookUp(), since: now};
			this.#known = known;
			known.address.catch(() => {
				if (this.#known === known) {
					this.#known = undefined;
				}
			});
		}

		return abortable(this.#known.address, signal);
	}

	async #lookUp(): Promise<WorkerAddress> {
		using scope = new Scope(this.#life).deadline(timeoutMs, "the node's address towards the pod VMs");
		if ('hostInterface' in this.#source) {
			return workerAddress(await this.#iproute2.links(scope.signal), this.#source);
		}

		this.#vmAddress ??= checked(await this.#source.vmAddress(scope.signal));
		const {route, links} = await this.#iproute2.routeTo(this.#vmAddress, scope.signal);
		return workerAddress(links, {route});
	}
}

/** It goes into a script for ip. */
function checked(address: string): string {
	if (!isIPv4(address)) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: "The pod VMs' network has no IPv4 subnet",
			where: {address},
			remedy: 'Set LIBVIRT_NET to a network with an IPv4 address, or set HOST_INTERFACE.',
		});
	}

	return address;
}

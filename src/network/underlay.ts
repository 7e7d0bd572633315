/** The address of the node towards the pod VMs: looked up when needed, and cached for a short time. */
import {isIPv4} from 'node:net';
import {AdaptorError, toError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import type {Iproute2} from './iproute2.ts';
import {workerAddress, type WorkerAddress} from './plan.ts';

/** An interface name, or any address in the subnet of the VMs. The function is called until it succeeds once. */
export type UnderlaySource =
	{readonly hostInterface: string} | {readonly vmAddress: (signal: AbortSignal) => Promise<string>};

/** A new address of the node is noticed after this time. */
const maxAgeMs = 30_000;
/** Time limit of a look-up, which concurrent callers share. A caller may give up earlier. */
const timeoutMs = 20_000;

export class Underlay {
	readonly #iproute2: Iproute2;
	readonly #source: UnderlaySource;
	readonly #life: AbortSignal;
	#vmAddress: string | undefined;
	#known: {readonly address: Promise<WorkerAddress>; readonly since: number} | undefined;

	/** @param life ends a look-up without waiting callers */
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

/** Validates the address, because it is part of a script for ip. */
function checked(address: string): string {
	if (!isIPv4(address)) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'The network of the pod VMs has no IPv4 subnet',
			where: {address},
			remedy: 'Set LIBVIRT_NET to a network with an IPv4 address, or set HOST_INTERFACE.',
		});
	}

	return address;
}

/**
 * Finds candidate addresses of a VM: asks the host repeatedly, often at first, and stops when the VM ends. For a
 * recycled MAC, an old lease appears before the guest is up: a good guess, but only TLS proves who answers. Does not
 * use the QEMU guest agent: pod VM images do not have it, and its answers would be the guest's own claim.
 */
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {pause, Scope} from '../core/lifetime.ts';
import {isLibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type Domain, type Network} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import type {ConsoleTail} from './console-tail.ts';
import {isSameVm, readEnd} from './end-watch.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {PodVmEndedError} from '../sandbox/vm-ended.ts';
import {endOfEvent} from './vm-end.ts';

export interface Reachable {
	readonly domain: Domain;
	readonly mac: string;
	/** Name of the domain. */
	readonly network: string;
	/** The console that is read at the same time. */
	readonly console?: ConsoleTail;
}

const pauses = {firstMs: 50, longestMs: 500, growth: 1.5};

/**
 * The state of the VM is read once in this number of rounds, every two seconds at the end, in case an event was lost.
 */
const roundsPerState = 4;

const ipv4 = 0;
const sources = {lease: 0, arp: 2};

/** @throws PodVmEndedError as soon as the VM ends; the reason of the signal. Failed calls to libvirt are retried. */
export function findAddresses(
	session: LibvirtCalls,
	vm: Reachable,
	log: Logger,
	signal: AbortSignal,
): AsyncGenerator<string, never> {
	// A plain generator answers return() only after the pending next(), which may wait forever for another address.
	// This ends that wait.
	const stop = new Scope();
	const found = search(session, vm, log, signal, stop.signal);
	const end = async (): Promise<IteratorReturnResult<never>> => {
		stop.abort(new AdaptorError({code: 'cancelled', what: 'The addresses of the pod VM are no longer needed'}));
		// The cast is safe: a generator that ends has the value undefined, which is never read.
		return found.return(undefined as never) as Promise<IteratorReturnResult<never>>;
	};

	return {
		next: async () =>
			found.next().catch(async (error: unknown) => {
				if (stop.signal.aborted) {
					return end();
				}

				throw error;
			}),
		return: end,
		throw: async error => {
			await end();
			throw error;
		},
		[Symbol.asyncIterator]() {
			return this;
		},
		async [Symbol.asyncDispose]() {
			await end();
		},
	};
}

async function* search(
	session: LibvirtCalls,
	{domain, mac, network, console: tail}: Reachable,
	log: Logger,
	...ends: readonly AbortSignal[]
): AsyncGenerator<string, never> {
	using scope = new Scope(...ends);
	const endWith = async (ended: PodVmEndedError): Promise<void> => {
		await tail?.rest();
		scope.abort(ended);
	};
	// Add the listener before reading the state: an event in between is then seen twice, not missed.
	using _listener = session.onLifecycle(event => {
		const ended = isSameVm(event.domain, domain) ? endOfEvent(event) : undefined;
		if (ended !== undefined) {
			void endWith(ended);
		}
	});
	using _console = tail?.follow(session, domain, log);
	const hints = new AddressHints(session, {domain, mac, network});
	const told = new Set<string>();
	const failures = new FailureLog();
	let delayMs = pauses.firstMs;
	for (let round = 0; ; round++) {
		let found: readonly string[] = [];
		try {
			[found] = await Promise.all([
				hints.read(scope.signal),
				round % roundsPerState === 0
					? readEnd(session, domain, scope.signal).then(async ended =>
							ended === undefined ? undefined : endWith(ended),
						)
					: undefined,
			]);
		} catch (error) {
			if (!scope.signal.aborted) {
				log[failures.failed() ? 'warn' : 'debug'](
					{instanceName: domain.name, err: error},
					'address of the pod VM not known yet: asking libvirt again',
				);
			}
		}

		for (const address of found) {
			throwIfAborted(scope.signal);
			if (!told.has(address)) {
				told.add(address);
				log.debug({instanceName: domain.name, mac, address}, 'pod VM may be at this address');
				yield address;
			}
		}

		throwIfAborted(scope.signal);
		await pause(delayMs, scope.signal);
		delayMs = Math.min(pauses.longestMs, delayMs * pauses.growth);
	}
}

function throwIfAborted(signal: AbortSignal): void {
	if (signal.aborted) {
		throw toError(signal.reason);
	}
}

/** The addresses of a MAC, from the first source that has any. */
class AddressHints {
	readonly #session: LibvirtCalls;
	readonly #vm: Reachable;
	#network: Network | undefined;
	#hasLeases = true;

	constructor(session: LibvirtCalls, vm: Reachable) {
		this.#session = session;
		this.#vm = vm;
	}

	/** The most likely address first. */
	async read(signal: AbortSignal): Promise<readonly string[]> {
		const leased = this.#hasLeases ? await this.#leases(signal) : await this.#ofInterfaces(sources.lease, signal);
		// If libvirt does not run the DHCP of the network, only the neighbour table of the host has the address. Some
		// hosts cannot read it.
		return leased.length > 0 ? leased : await this.#ofInterfaces(sources.arp, signal);
	}

	/** Newest first. */
	async #leases(signal: AbortSignal): Promise<readonly string[]> {
		const {mac, network: name} = this.#vm;
		try {
			this.#network ??= (await this.#session.call(procedures.networkLookupByName, {name}, signal)).net;
			const {leases} = await this.#session.call(
				procedures.networkGetDhcpLeases,
				{net: this.#network, mac, needResults: 1, flags: 0},
				signal,
			);
			return leases
				.filter(lease => lease.type === ipv4 && lease.mac?.toLowerCase() === mac)
				.sort((a, b) => Number(b.expirytime - a.expirytime))
				.map(({ipaddr}) => ipaddr);
		} catch (error) {
			// It may have been defined again, with another UUID.
			this.#network = undefined;
			if (isLibvirtError(error, libvirtCode.noSupport)) {
				this.#hasLeases = false;
				return [];
			}

			throw error;
		}
	}

	async #ofInterfaces(source: number, signal: AbortSignal): Promise<readonly string[]> {
		const {domain: dom, mac} = this.#vm;
		try {
			const {ifaces} = await this.#session.call(
				procedures.domainInterfaceAddresses,
				{dom, source, flags: 0},
				signal,
			);
			return ifaces
				.filter(({hwaddr}) => hwaddr?.toLowerCase() === mac)
				.flatMap(({addrs}) => addrs.filter(({type}) => type === ipv4).map(({addr}) => addr));
		} catch (error) {
			if (source === sources.arp && !signal.aborted) {
				return [];
			}

			throw error;
		}
	}
}

/**
 * Detects the end of running VMs, however long they run, also across lost connections. An event reports it at once. A
 * lost connection loses events, so after each reconnect, and once a minute, one call lists all running VMs. For each
 * watched VM that is not in the list, one more call reads its state.
 */
import {every, Trigger} from '../core/concurrency/every.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import {isLibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures, type Domain} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {PodVmEndedError} from '../sandbox/vm-ended.ts';
import {endOfEvent, endOfState} from './vm-end.ts';

export interface EndWatchOptions {
	readonly session: LibvirtCalls;
	readonly log: Logger;
	/** Interval between reads of all states. */
	readonly scanIntervalMs?: number;
}

interface Watched {
	readonly domain: Domain;
	readonly tell: (end: PodVmEndedError) => void;
}

/** VIR_CONNECT_LIST_DOMAINS_RUNNING (libvirt-domain.h). */
const onlyRunning = 16;

export class EndWatch {
	readonly #session: LibvirtCalls;
	readonly #log: Logger;
	readonly #scanIntervalMs: number;
	readonly #watched = new Set<Watched>();
	/** Runs while any VM is watched. */
	#life: Scope | undefined;
	/** Makes the next read happen now. */
	readonly #due = new Trigger();

	constructor({session, log, scanIntervalMs = 60_000}: EndWatchOptions) {
		this.#session = session;
		this.#log = log;
		this.#scanIntervalMs = scanIntervalMs;
	}

	/**
	 * Resolves with how the VM ended, even if that was before this call. Only rejects with the reason of the signal.
	 */
	async ended(domain: Domain, signal: AbortSignal): Promise<PodVmEndedError> {
		const {promise, resolve} = Promise.withResolvers<PodVmEndedError>();
		const watched: Watched = {domain, tell: resolve};
		this.#watched.add(watched);
		if (this.#life === undefined) {
			this.#life = new Scope();
			void this.#readStatesPeriodically(this.#life.signal);
		} else {
			this.#due.fire();
		}

		try {
			return await abortable(promise, signal);
		} finally {
			this.#watched.delete(watched);
			if (this.#watched.size === 0) {
				this.#life.abort(undefined);
				this.#life = undefined;
			}
		}
	}

	/** Never rejects. */
	async #readStatesPeriodically(life: AbortSignal): Promise<void> {
		// Add the listeners before reading the states: an event in between is then seen twice, not missed.
		using _events = this.#session.onLifecycle(event => {
			const end = endOfEvent(event);
			if (end !== undefined) {
				this.#tell(event.domain, end);
			}
		});
		using _states = this.#session.onState(({name}) => {
			if (name === 'connected') {
				this.#due.fire();
			}
		});
		for await (const _ of every(this.#scanIntervalMs, life, this.#due)) {
			try {
				await this.#look(life);
			} catch (error) {
				if (!life.aborted) {
					this.#log.debug(
						{err: error},
						'could not determine whether the pod VMs still run; asking libvirt again',
					);
				}
			}
		}
	}

	async #look(signal: AbortSignal): Promise<void> {
		const watched = [...this.#watched];
		const {domains} = await this.#session.call(
			procedures.connectListAllDomains,
			{needResults: 1, flags: onlyRunning},
			signal,
		);
		await Promise.all(
			watched.map(async ({domain, tell}) => {
				const running = domains.find(({uuid}) => Buffer.compare(uuid, domain.uuid) === 0);
				// UUIDs are recycled with their slots, so another VM may have this UUID now.
				const end =
					running === undefined
						? await readEnd(this.#session, domain, signal)
						: running.name === domain.name
							? undefined
							: endOfState(domain.name, undefined);
				if (end !== undefined) {
					tell(end);
				}
			}),
		);
	}

	#tell(of: Domain, end: PodVmEndedError): void {
		for (const {domain, tell} of this.#watched) {
			if (isSameVm(domain, of)) {
				tell(end);
			}
		}
	}
}

/** Compares the name too, because the UUID may have belonged to another VM before. */
export function isSameVm(one: Domain, other: Domain): boolean {
	return one.name === other.name && Buffer.compare(one.uuid, other.uuid) === 0;
}

/** How it ended according to its state; undefined if it runs. */
export async function readEnd(
	session: LibvirtCalls,
	domain: Domain,
	signal: AbortSignal,
): Promise<PodVmEndedError | undefined> {
	try {
		return endOfState(domain.name, await session.call(procedures.domainGetState, {dom: domain, flags: 0}, signal));
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noDomain)) {
			return endOfState(domain.name, undefined);
		}

		throw error;
	}
}

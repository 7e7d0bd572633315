/**
 * Tells when VMs end that run already, however long that takes and whatever becomes of the connection meanwhile. An
 * event tells at once. Events are lost with connections, so all VMs are looked at after each time that it came back,
 * and once a minute in case that more goes wrong: with one call for all of them, and one more for each that does not
 * simply run.
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
	/** From one look at all VMs to the next. */
	readonly lookEveryMs?: number;
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
	readonly #lookEveryMs: number;
	readonly #watched = new Set<Watched>();
	/** Lasts while anything is watched. */
	#life: Scope | undefined;
	/** The next look shall not wait for its time. */
	readonly #due = new Trigger();

	constructor({session, log, lookEveryMs = 60_000}: EndWatchOptions) {
		this.#session = session;
		this.#log = log;
		this.#lookEveryMs = lookEveryMs;
	}

	/**
	 * Resolves with how the VM has ended, be it before this call. Rejects with the signal's reason, and with nothing
	 * else.
	 */
	async ended(domain: Domain, signal: AbortSignal): Promise<PodVmEndedError> {
		const {promise, resolve} = Promise.withResolvers<PodVmEndedError>();
		const watched: Watched = {domain, tell: resolve};
		this.#watched.add(watched);
		if (this.#life === undefined) {
			this.#life = new Scope();
			void this.#keepLooking(this.#life.signal);
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
	async #keepLooking(life: AbortSignal): Promise<void> {
		// First the listeners, then the look: what happens in between is seen twice rather than never.
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
		for await (const _ of every(this.#lookEveryMs, life, this.#due)) {
			try {
				await this.#look(life);
			} catch (error) {
				if (!life.aborted) {
					this.#log.debug({err: error}, 'could not see whether the pod VMs still run: asking libvirt again');
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
				// UUIDs are recycled with their slots: another VM may have it by now.
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

/** Also by name: the UUID was another VM's before. */
export function isSameVm(one: Domain, other: Domain): boolean {
	return one.name === other.name && Buffer.compare(one.uuid, other.uuid) === 0;
}

/** How it ended, if it did, as its state tells. */
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

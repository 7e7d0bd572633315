/**
 * The relays of this process, by sandbox. It is the only source of truth about them, because daemons may restart at any
 * time.
 */
import {AdaptorError} from '../core/errors.ts';
import {abortable, Scope, type DeadlineError} from '../core/lifetime.ts';
import type {AgentRelay, AgentRelays, RelayTarget, SandboxId} from '../sandbox/ports.ts';
import {AddressQueue} from './address-queue.ts';

export interface ServedRelay extends RelayTarget {
	readonly address: string;
	/** The reason why all calls of this relay fail; absent while the VM is usable. */
	readonly failure?: string;
}

interface Opening {
	readonly offers: AddressQueue;
	readonly scope: Scope;
	/** Never rejects. */
	readonly over: Promise<unknown>;
}

interface Entry {
	readonly target: RelayTarget;
	opening?: Opening;
	relay?: AgentRelay;
	failure?: string;
}

export class RelayTable implements AsyncDisposable {
	readonly #relays: AgentRelays;
	readonly #entries = new Map<SandboxId, Entry>();

	constructor(relays: AgentRelays) {
		this.#relays = relays;
	}

	get size(): number {
		return this.#entries.size;
	}

	list(): readonly ServedRelay[] {
		return [...this.#entries.values()].flatMap(({target, relay, failure}) =>
			relay === undefined
				? []
				: [{...target, address: relay.address, ...(failure === undefined ? {} : {failure})}],
		);
	}

	/**
	 * Opens the relay, or returns the VM address of the relay that is already open.
	 * @throws 'already-exists' for a sandbox with another name or path; as `AgentRelays.open`
	 */
	async open(target: RelayTarget, signal: AbortSignal): Promise<string> {
		for (;;) {
			const entry = this.#entries.get(target.sandboxId);
			if (entry === undefined) {
				return this.#open(target, signal);
			}

			if (entry.target.instanceName !== target.instanceName || entry.target.socketPath !== target.socketPath) {
				throw new AdaptorError({
					code: 'already-exists',
					what: 'Another relay of the sandbox is open',
					where: {
						sandboxId: target.sandboxId,
						instanceName: entry.target.instanceName,
						socketPath: entry.target.socketPath,
					},
				});
			}

			if (entry.relay !== undefined) {
				return entry.relay.address;
			}

			// The opening may belong to a daemon that has just ended.
			await abortable(entry.opening?.over ?? Promise.resolve(), signal);
		}
	}

	offer(sandboxId: SandboxId, address: string): void {
		this.#entries.get(sandboxId)?.opening?.offers.add(address);
	}

	fail(sandboxId: SandboxId, reason: string): void {
		const entry = this.#entries.get(sandboxId);
		if (entry !== undefined) {
			entry.failure ??= reason;
			entry.relay?.fail(new AdaptorError({code: 'unavailable', what: reason}));
		}
	}

	/**
	 * Aborts the opening, or closes the relay.
	 * @param lateness why the opening ends, if its time limit has passed
	 */
	async close(sandboxId: SandboxId, lateness?: DeadlineError): Promise<void> {
		const entry = this.#entries.get(sandboxId);
		if (entry?.opening !== undefined) {
			entry.opening.scope.abort(lateness ?? new AdaptorError({code: 'aborted', what: 'The relay was closed'}));
			await entry.opening.over;
		}

		if (entry?.relay !== undefined) {
			try {
				await entry.relay[Symbol.asyncDispose]();
			} finally {
				// If closing leaves only the socket file behind, `discard` removes it later.
				this.#forget(sandboxId, entry);
			}
		}
	}

	async discard(socketPath: string): Promise<void> {
		const found = [...this.#entries.values()].find(({target}) => target.socketPath === socketPath);
		if (found === undefined) {
			await this.#relays.discard(socketPath);
		} else {
			await this.close(found.target.sandboxId);
		}
	}

	/** Closes all sockets and connections. */
	async [Symbol.asyncDispose](): Promise<void> {
		await Promise.all([...this.#entries.keys()].map(async id => this.close(id)));
	}

	async #open(target: RelayTarget, signal: AbortSignal): Promise<string> {
		using scope = new Scope(signal);
		const offers = new AddressQueue(scope.signal);
		const over = Promise.withResolvers<undefined>();
		const entry: Entry = {target, opening: {offers, scope, over: over.promise}};
		this.#entries.set(target.sandboxId, entry);
		try {
			const relay = await this.#relays.open(target, offers, scope.signal);
			entry.relay = relay;
			if (entry.failure !== undefined) {
				relay.fail(new AdaptorError({code: 'unavailable', what: entry.failure}));
			}

			return relay.address;
		} catch (error) {
			this.#forget(target.sandboxId, entry);
			throw error;
		} finally {
			delete entry.opening;
			over.resolve(undefined);
		}
	}

	#forget(sandboxId: SandboxId, entry: Entry): void {
		if (this.#entries.get(sandboxId) === entry) {
			this.#entries.delete(sandboxId);
		}
	}
}

/**
 * One connection of the daemon to a relay process. It is not reused after the connection ends: `RemoteRelays` creates a
 * new one.
 */
import type {ServiceDefinition} from '@grpc/proto-loader';
import {AdaptorError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import type {RelayEvent} from '../relay/events.ts';
import type {SandboxId} from '../sandbox/ports.ts';
import {connect, type TtrpcClient} from '../ttrpc/client.ts';
import {contractVersion, methodOf, type RelayMethod, type RelayMethods} from './contract.ts';
import {decodeEvent} from './event-codec.ts';
import type {RelayProcessEvent} from './events.ts';

/** The relay process answers at once, whatever its VMs do. */
const answerTimeoutMs = 10_000;

export class RelayLink implements AsyncDisposable {
	readonly path: string;
	/**
	 * The sandboxes that the relay process serves: those at the time of the connection, and those that were opened
	 * later.
	 */
	readonly sandboxes: Set<SandboxId>;
	readonly #client: TtrpcClient;
	readonly #contract: ServiceDefinition;
	readonly #ending = new AbortController();

	private constructor(path: string, sandboxes: Set<SandboxId>, client: TtrpcClient, contract: ServiceDefinition) {
		this.path = path;
		this.sandboxes = sandboxes;
		this.#client = client;
		this.#contract = contract;
		void client.closed.then(() => this.#ending.abort(lost(path)));
	}

	/** @throws AdaptorError 'unavailable' if nobody answers at the path; the reason of the signal */
	static async to(path: string, contract: ServiceDefinition, signal: AbortSignal): Promise<RelayLink> {
		await using undo = new AsyncDisposableStack();
		using scope = new Scope(signal).deadline(answerTimeoutMs, 'the relay process');
		const client = await connect(path, scope.signal);
		undo.defer(async () => client.close());
		await client.call(methodOf(contract, 'Hello'), {version: contractVersion}, {}, scope.signal);
		const {relays} = await client.call(methodOf(contract, 'List'), {}, {}, scope.signal);
		undo.move();
		return new RelayLink(path, new Set(relays.map(relay => relay.sandbox_id)), client, contract);
	}

	/** Aborts when the connection is lost or closed. */
	get lost(): AbortSignal {
		return this.#ending.signal;
	}

	/** @throws TtrpcError with the answer; 'unavailable' when the connection is lost; the reason of the signal */
	async call<Name extends RelayMethod>(
		name: Name,
		request: RelayMethods[Name][0],
		signal: AbortSignal,
		timeoutMs = answerTimeoutMs,
	): Promise<RelayMethods[Name][1]> {
		return this.#client.call(methodOf(this.#contract, name), request, {timeoutMs}, signal);
	}

	/** For calls without a time limit, which are answered when their work is done. @throws as `call` */
	async wait<Name extends RelayMethod>(
		name: Name,
		request: RelayMethods[Name][0],
		signal: AbortSignal,
	): Promise<RelayMethods[Name][1]> {
		return this.#client.call(methodOf(this.#contract, name), request, {}, signal);
	}

	/** Events until the connection ends. Begins with the events that no daemon has received yet. Never rejects. */
	async watch(onEvent: (event: RelayEvent | RelayProcessEvent) => void): Promise<void> {
		let after = '0';
		try {
			for (;;) {
				const {events} = await this.wait('Watch', {after}, this.lost);
				for (const message of events) {
					after = message.number;
					const event = decodeEvent(message);
					if (event !== undefined) {
						onEvent(event);
					}
				}
			}
		} catch {
			// Either the connection is lost, or the relay process is an older version that does not send events.
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#client.close();
	}
}

function lost(path: string): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'The connection to the relay process is lost', where: {path}});
}

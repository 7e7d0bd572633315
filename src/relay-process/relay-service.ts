/**
 * Implements proto/relay.proto for one connection of a daemon. When the connection ends, relays that are still being
 * opened are aborted.
 */
import type {AgentRelays, ForwarderTls} from '../sandbox/ports.ts';
import {DeadlineError} from '../core/lifetime.ts';
import type {RelayEvent} from '../relay/events.ts';
import type {CallContext, Handler} from '../ttrpc/service.ts';
import {contractVersion, type Empty, type Issued, type RelayMethod, type RelayMethods} from './contract.ts';
import {encodeEvent} from './event-codec.ts';
import type {EventJournal} from './event-journal.ts';
import type {RelayProcessEvent} from './events.ts';
import type {RegisteredDaemons} from './registered-daemons.ts';
import type {RelayTable} from './relay-table.ts';

export interface RelayServiceContext {
	readonly relays: Pick<AgentRelays, 'issue'>;
	readonly table: RelayTable;
	readonly daemons: RegisteredDaemons;
	readonly events: EventJournal<RelayEvent | RelayProcessEvent>;
}

type Handlers = {
	readonly [Name in RelayMethod]: (
		request: RelayMethods[Name][0],
		context: CallContext,
	) => Promise<RelayMethods[Name][1]>;
};

export class DaemonConnection implements Disposable {
	readonly #context: RelayServiceContext;
	#registration: Disposable | undefined;

	constructor(context: RelayServiceContext) {
		this.#context = context;
	}

	get handlers(): Readonly<Record<string, Handler>> {
		const {relays, table, daemons, events} = this.#context;
		const done: Empty = {};
		const handlers: Handlers = {
			Hello: async () => ({version: contractVersion}),
			Issue: async ({instance_name: instanceName}, {signal}) => issued(await relays.issue(instanceName, signal)),
			Open: async ({sandbox_id: sandboxId, instance_name: instanceName, socket_path: socketPath}, {signal}) => ({
				address: await table.open({sandboxId, instanceName, socketPath}, signal),
			}),
			async Offer({sandbox_id: sandboxId, address}) {
				table.offer(sandboxId, address);
				return done;
			},
			async Close({sandbox_id: sandboxId, deadline_exceeded: isLate, time_limit: limit}) {
				await table.close(
					sandboxId,
					isLate ? new DeadlineError('the pod VM', limit || 'the time limit') : undefined,
				);
				return done;
			},
			async Discard({socket_path: socketPath}) {
				await table.discard(socketPath);
				return done;
			},
			async Fail({sandbox_id: sandboxId, reason}) {
				table.fail(sandboxId, reason);
				return done;
			},
			List: async () => ({
				relays: table.list().map(({sandboxId, instanceName, socketPath, address, failure}) => ({
					sandbox_id: sandboxId,
					instance_name: instanceName,
					socket_path: socketPath,
					address,
					failure: failure ?? '',
				})),
			}),
			Watch: async ({after}, {signal}) => ({
				events: (await events.after(Number(after), signal)).map(({number, event}) =>
					encodeEvent(number, event),
				),
			}),
			Register: async ({socket_path: socketPath}) => {
				this[Symbol.dispose]();
				this.#registration = daemons.register({socketPath});
				return done;
			},
			Unregister: async () => {
				this[Symbol.dispose]();
				return done;
			},
		};
		return handlers;
	}

	/** The connection has ended. */
	[Symbol.dispose](): void {
		this.#registration?.[Symbol.dispose]();
		this.#registration = undefined;
	}
}

function issued({serverKey, serverCert, clientCa, minVersion, cipherSuites}: ForwarderTls): Issued {
	return {
		server_key: serverKey?.reveal() ?? '',
		server_cert: serverCert ?? '',
		client_ca: clientCa ?? '',
		min_version: minVersion ?? '',
		cipher_suites: cipherSuites ?? [],
	};
}

/**
 * Relays the traffic of the kata agent as frames between a unix socket for the shim and mutual TLS to the forwarder in
 * the VM. Combines identity, dialling, socket and shim sessions. Decides nothing about sandboxes.
 */
import type {Socket} from 'node:net';
import type {Duplex} from 'node:stream';
import {createSecureContext, type ConnectionOptions} from 'node:tls';
import {Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {Observer, Without} from '../core/observer.ts';
import type {AgentRelay, AgentRelays, RelayTarget} from '../sandbox/ports.ts';
import {checkAgentSocketPath, discardSocket, listenForShims} from './agent-socket.ts';
import {latestStart} from './clock.ts';
import {ShimSession} from './shim-session.ts';
import type {DialTarget} from './dial.ts';
import type {ConnectionEvent, RelayEvent} from './events.ts';
import type {RelayIdentity} from './identity.ts';
import {forwarderOptions, secureContextOptions, type TlsOptions} from './tls-options.ts';
import {defaultTimings, type RelayTimings} from './redial-policy.ts';
import {tlsConnector} from './tls-connector.ts';
import type {Connected, VmConnector} from './vm-connector.ts';

export interface AgentRelaysOptions {
	readonly identity: RelayIdentity;
	/** TCP port of the forwarder in the VM. */
	readonly forwarderPort: number;
	readonly tls?: TlsOptions;
	readonly observer: Observer<RelayEvent>;
	/** For messages that are not about a single sandbox. */
	readonly log: Logger;
	readonly timings?: Partial<RelayTimings>;
}

/** @throws 'invalid-argument' for TLS options that contradict each other */
export function createAgentRelays({
	identity,
	forwarderPort,
	tls = {},
	observer,
	log,
	timings,
}: AgentRelaysOptions): AgentRelays {
	const connection: ConnectionOptions = {
		secureContext: createSecureContext({
			...secureContextOptions(tls),
			ca: identity.serverCa,
			cert: identity.client.cert,
			key: identity.client.key.reveal(),
		}),
		...(tls.skipVerify === true
			? {rejectUnauthorized: false, checkServerIdentity: () => undefined}
			: {rejectUnauthorized: true}),
	};
	if (tls.skipVerify === true) {
		log.warn({}, 'TLS_SKIP_VERIFY is set: VMs are not verified');
	}

	const allTimings = {...defaultTimings, ...timings};
	const caBegins = latestStart([identity.serverCa]);
	return {
		async issue(instanceName, signal) {
			signal.throwIfAborted();
			return {...(await identity.issue(instanceName)), ...forwarderOptions(tls)};
		},
		async open(target, addresses, signal) {
			checkAgentSocketPath(target.socketPath);
			const sandbox = {sandboxId: target.sandboxId, instanceName: target.instanceName};
			const notify: Notify = event => observer.notify({...event, sandbox});
			const connector = tlsConnector(
				{
					instanceName: target.instanceName,
					port: forwarderPort,
					serverName: identity.serverName(target.instanceName),
					tls: connection,
					caBegins,
					timings: allTimings,
					refused: countedRefusals(notify),
					progressed(address, progress) {
						notify({kind: 'address-progress', address, progress});
						target.onProgress?.(address, progress);
					},
				},
				allTimings.again,
			);
			const startedAt = performance.now();
			const found = await connector.find(addresses, signal);
			notify({
				kind: 'forwarder-reached',
				address: found.address,
				durationMs: Math.round(performance.now() - startedAt),
			});
			await using undo = new AsyncDisposableStack();
			const relay = undo.use(new Relay(found, connector, target.instanceName, notify, allTimings));
			await relay.listen(target, log.child(sandbox));
			signal.throwIfAborted();
			undo.move();
			return relay;
		},
		assertServable: checkAgentSocketPath,
		discard: async socketPath => discardSocket(socketPath),
	};
}

type Notify = (event: Without<RelayEvent, 'sandbox'>) => void;

class Relay implements AgentRelay {
	readonly address: string;
	readonly #connector: VmConnector;
	readonly #instanceName: string;
	readonly #notify: Notify;
	readonly #timings: RelayTimings;
	readonly #parts = new AsyncDisposableStack();
	readonly #sessions = new Set<ShimSession>();
	/** The verified connection, kept for the first shim. */
	#warm: WarmConnection | undefined;
	#connections = 0;
	#failure: Error | undefined;
	#disposed: Promise<void> | undefined;

	constructor(
		{address, socket}: Connected,
		connector: VmConnector,
		instanceName: string,
		notify: Notify,
		timings: RelayTimings,
	) {
		this.address = address;
		this.#connector = connector;
		this.#instanceName = instanceName;
		this.#notify = notify;
		this.#timings = timings;
		this.#warm = new WarmConnection(socket, notify);
	}

	async listen({socketPath}: RelayTarget, log: Logger): Promise<void> {
		this.#parts.use(await listenForShims(socketPath, log, shim => this.#accept(shim)));
	}

	fail(reason: Error): void {
		this.#failure ??= reason;
		this.#takeWarm()?.destroy();
		for (const session of this.#sessions) {
			session.fail(this.#failure);
		}
	}

	#accept(shim: Socket): void {
		if (this.#disposed !== undefined) {
			shim.destroy();
			return;
		}

		const connection = ++this.#connections;
		const observer: Observer<ConnectionEvent> = {notify: event => this.#notify({...event, connection})};
		observer.notify({kind: 'shim-connected'});
		const session = new ShimSession(shim, {
			connectVm: async signal => this.#connectVm(observer, signal),
			where: {instanceName: this.#instanceName, address: this.address},
			observer,
			now: () => performance.now(),
			redialPauseMs: this.#timings.redialPauseMs,
			liveness: this.#timings.liveness,
		});
		this.#sessions.add(session);
		void session.ended.then(() => this.#sessions.delete(session));
		if (this.#failure !== undefined) {
			session.fail(this.#failure);
		}
	}

	async #connectVm(observer: Observer<ConnectionEvent>, signal: AbortSignal): Promise<Duplex> {
		const warm = this.#takeWarm();
		if (warm !== undefined) {
			return warm;
		}

		for (let isNews = true; ; isNews = false) {
			using scope = new Scope(signal).deadline(this.#timings.reportMs, 'a connection to the VM');
			try {
				return await this.#connector.reconnect(this.address, scope.signal);
			} catch (error) {
				signal.throwIfAborted();
				observer.notify({kind: 'vm-unreachable', error, isNews});
			}
		}
	}

	#takeWarm(): Duplex | undefined {
		const warm = this.#warm?.take();
		this.#warm = undefined;
		return warm;
	}

	async leave(): Promise<void> {
		await this[Symbol.asyncDispose]();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#disposed ??= this.#dispose();
		return this.#disposed;
	}

	async #dispose(): Promise<void> {
		this.#takeWarm()?.destroy();
		await Promise.all([
			this.#parts.disposeAsync(),
			...[...this.#sessions].map(async session => session[Symbol.asyncDispose]()),
		]);
	}
}

/**
 * An unused connection that is not read yet. If the other side closes it, it is dropped and reported once.
 */
class WarmConnection {
	readonly #socket: Duplex;
	readonly #notify: Notify;
	#error: Error | undefined;
	#lost = false;

	constructor(socket: Duplex, notify: Notify) {
		this.#socket = socket;
		this.#notify = notify;
		socket.on('error', this.#onError);
		socket.once('close', this.#onClose);
		// Node only notices the end of the stream after a read attempt. Data that was read stays in the buffer for the
		// shim. (Normally there is none, because a ttrpc server never sends first.)
		socket.on('readable', this.#onReadable);
	}

	/** Hands the connection to the caller; undefined if it was closed. */
	take(): Duplex | undefined {
		this.#socket.removeListener('readable', this.#onReadable);
		this.#socket.removeListener('close', this.#onClose);
		if (this.#lost || this.#socket.destroyed || this.#socket.readableEnded) {
			this.#socket.destroy();
			return undefined;
		}

		return this.#socket;
	}

	readonly #onError = (error: Error): void => {
		this.#error ??= error;
	};

	readonly #onReadable = (): void => {
		if (this.#socket.readableLength === 0) {
			this.#lost = true;
			this.#socket.destroy();
		}
	};

	readonly #onClose = (): void => {
		this.#lost = true;
		this.#notify({kind: 'unused-connection-closed', error: this.#error});
	};
}

/** Counts the refusals of each address and kind. */
function countedRefusals(notify: Notify): DialTarget['refused'] {
	const counts = new Map<string, number>();
	return (address, {reason, remedy}) => {
		// The remedy identifies the kind. The reason varies: it contains the time or a name.
		const key = `${address} ${remedy}`;
		const attempt = (counts.get(key) ?? 0) + 1;
		counts.set(key, attempt);
		notify({kind: 'address-refused', address, attempt, reason, remedy});
	};
}

/**
 * A long-lived libvirt connection: the first call connects, and after each loss the session reconnects with back-off,
 * until it is disposed. Does not know how connections are made (connector.ts) or how calls share one (rpc.ts).
 *
 *   idle ──call──▶ connecting ──▶ connected ──▶ closed
 *                      ▲── lost ──────┘ ▲────┐ silent, and a new connection succeeds: it replaces the silent one
 *                                       └────┘
 */
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import type {Without} from '../core/observer.ts';
import {ReconnectLoop} from './reconnect-loop.ts';
import {Connector, type ConnectionEvents, type PreparedConnection} from './connector.ts';
import {isRefusal, LibvirtConnectionError} from './wire/errors.ts';
import {lifecycleEvent, type LifecycleEvent} from './wire/events.ts';
import {Listeners} from './listeners.ts';
import type {Packet} from './wire/packet.ts';
import {procedures, type Domain, type Procedure, type StorageVol} from './wire/procedures.ts';
import type {RpcConnection} from './rpc.ts';
import type {ServerInfo, SessionEvent} from './session-events.ts';
import {
	sessionDefaults,
	type CallOptions,
	type LibvirtSessionOptions,
	type SessionState,
	type StreamRange,
} from './session-options.ts';
import {StreamConnections} from './stream-connections.ts';
import {consoleOutput, downloadVolume, uploadVolume, type VolumeRange} from './streams.ts';
import {decode} from './wire/xdr.ts';

/** A connection that lasted less than this time does not reset the back-off. */
const stableMs = 5000;
/**
 * Uploads up to this size share the connection with the calls: the daemon reads them faster than a new connection could
 * be made.
 */
const sharedUploadLimit = 8n * 1024n * 1024n;
/** If the answer to a call is lost this many times, the call itself may cause the loss of the connections. */
const lostAnswersAtMost = 3;
/** The peer gets this time to read the last bytes; then the connection is destroyed. */
const closeTimeoutMs = 1000;

type Connected = Extract<SessionState, {readonly name: 'connected'}> & {
	readonly connection: RpcConnection;
	readonly since: number;
};
type State = Exclude<SessionState, {readonly name: 'connected'}> | Connected;

export class LibvirtSession implements AsyncDisposable {
	readonly #options: Required<LibvirtSessionOptions>;
	/** Ends with the session. */
	readonly #life = new Scope();
	/** Called with the connection, or with the failure of the current attempt. */
	readonly #waiters = new Set<(outcome: Connected | AdaptorError) => void>();
	readonly #lifecycleListeners = new Listeners<LifecycleEvent>(error => this.#onListenerError(error));
	readonly #stateListeners = new Listeners<SessionState>(error => this.#onListenerError(error));
	/** Running calls and uploads. */
	readonly #work = new Set<Promise<unknown>>();
	readonly #reconnect: ReconnectLoop;
	readonly #connector: Connector;
	readonly #streams: StreamConnections;
	readonly #events: ConnectionEvents = {onLost: () => this.#onLost(), onMessage: packet => this.#onMessage(packet)};
	/** Silent connections that were replaced while they carried a stream. */
	readonly #retired = new Set<RpcConnection>();
	#state: State = {name: 'idle'};
	#serverInfo: ServerInfo | undefined;
	#connections = 0;
	/** The current attempts to replace a silent connection; settled if there are none. Never rejects. */
	#replacing: Promise<void> = Promise.resolve();
	#closing: Promise<void> | undefined;

	constructor(options: LibvirtSessionOptions) {
		this.#options = {...sessionDefaults, ...options};
		this.#reconnect = new ReconnectLoop({
			attempt: async () => this.#connectOnce(),
			onFailure: (reason, number, retryInMs) => this.#onFailure(reason, number, retryInMs),
			isWaitedFor: () => this.#waiters.size > 0,
			pauseMs: this.#options.reconnectMs,
			life: this.#life.signal,
		});
		this.#connector = new Connector(this.#options);
		this.#streams = new StreamConnections(this.#connector, this.#options.callTimeoutMs);
	}

	get state(): SessionState {
		return this.#state;
	}

	/** The server of the current connection, or of the last one; undefined before the first. */
	get serverInfo(): ServerInfo | undefined {
		return this.#serverInfo;
	}

	/** Connects if necessary; rejects if the first attempt fails. */
	async connect(signal: AbortSignal): Promise<ServerInfo> {
		using scope = new Scope(signal).deadline(this.#options.callTimeoutMs, 'a connection to libvirt');
		const outcome = await this.#attempted(scope.signal);
		if (outcome instanceof AdaptorError) {
			throw new LibvirtConnectionError(procedures.connectOpen.name, false, undefined, outcome);
		}

		return outcome.server;
	}

	/**
	 * Calls one procedure. The first call of the session connects, and fails if the first attempt fails. Later, calls
	 * wait for a lost connection to be restored; running calls are repeated if that is safe (`retry`). All this happens
	 * within the time-out of the call.
	 * @throws LibvirtError the answer of the daemon; LibvirtConnectionError ('unavailable', or the code of a refusal
	 * such as 'unauthenticated') if there is no connection or it was lost; DeadlineError after `timeoutMs`; the reason
	 * of the signal. In the last two cases the daemon may still execute the call, which occupies one of four slots
	 * until it answers.
	 */
	async call<Args, Result>(
		procedure: Procedure<Args, Result>,
		args: Args,
		signal: AbortSignal,
		{timeoutMs = this.#options.callTimeoutMs, retry = procedure.idempotent, seeThrough = false}: CallOptions = {},
	): Promise<Result> {
		return this.#track(procedure.name, async () => {
			using timeLimit = new Scope().deadline(timeoutMs, `libvirt to answer ${procedure.name}`);
			using scope = new Scope(signal, timeLimit.signal);
			for (let lostAnswers = 0; ;) {
				const {connection} = await this.#connected(procedure.name, signal, scope.signal);
				try {
					return await connection.call(
						procedure,
						args,
						scope.signal,
						seeThrough ? timeLimit.signal : scope.signal,
					);
				} catch (error) {
					if (
						!(error instanceof LibvirtConnectionError) ||
						(error.mayHaveBeenExecuted && (!retry || ++lostAnswers === lostAnswersAtMost))
					) {
						throw error;
					}

					this.#notify({kind: 'libvirt-call-repeated', error});
				}
			}
		});
	}

	/**
	 * Writes the bytes of the source into the volume. Resolves when the daemon has confirmed all of them. Reads the
	 * source no faster than the daemon accepts the bytes. Pass `length` if it is known, because small uploads then need
	 * no separate connection.
	 * @throws as `call`; a LibvirtError is also possible after a part was written ('resource-exhausted' if the storage
	 * is full). That part stays.
	 */
	async upload(
		vol: StorageVol,
		source: AsyncIterable<Uint8Array>,
		range: StreamRange,
		signal: AbortSignal,
	): Promise<void> {
		const {name} = procedures.storageVolUpload;
		const volume = volumeRange(vol, range);
		await this.#track(name, async () => {
			if (volume.length > 0n && volume.length <= sharedUploadLimit) {
				using scope = new Scope(signal).deadline(
					this.#options.callTimeoutMs,
					`a connection to libvirt for ${name}`,
				);
				const {connection} = await this.#connected(name, signal, scope.signal);
				await uploadVolume(connection, volume, source, this.#options.streamTimeoutMs, signal);
				return;
			}

			using own = await this.#openStream(name, signal);
			await uploadVolume(own.connection, volume, source, this.#options.streamTimeoutMs, signal);
		});
	}

	/**
	 * Reads the bytes of the volume over a separate connection, no faster than they are consumed. Returning early ends
	 * the stream.
	 * @throws as `upload`
	 */
	async *download(vol: StorageVol, range: StreamRange, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		const {name} = procedures.storageVolDownload;
		const startedAt = performance.now();
		let error: unknown;
		try {
			using own = await this.#openStream(name, signal);
			yield* downloadVolume(own.connection, volumeRange(vol, range), this.#options.streamTimeoutMs, signal);
		} catch (thrown) {
			error = thrown;
			throw thrown;
		} finally {
			this.#notifyCall(name, startedAt, error);
		}
	}

	/**
	 * The output of the guest on its first console from now on, until the guest or the connection ends. Shares the
	 * connection with the calls, so the consumer must be fast. Returning early releases the console. Until then, `virsh
	 * console` needs --force, which ends this stream.
	 * @throws as `call`; also LibvirtError if another client has the console open
	 */
	async *console(dom: Domain, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		const {name} = procedures.domainOpenConsole;
		using scope = new Scope(signal).deadline(this.#options.callTimeoutMs, `a connection to libvirt for ${name}`);
		const {connection} = await this.#connected(name, signal, scope.signal);
		yield* consoleOutput(connection, dom, signal);
	}

	/**
	 * Lifecycle events of all domains, while connected. Does not connect by itself. An event may arrive before the
	 * answer of the call that caused it.
	 */
	onLifecycle(listener: (event: LifecycleEvent) => void): Disposable {
		return this.#lifecycleListeners.add(listener);
	}

	/** Reports every change of `state`. After each 'connected', read again what you know only from events. */
	onState(listener: (state: SessionState) => void): Disposable {
		return this.#stateListeners.add(listener);
	}

	/** Refuses new calls at once, lets running calls finish for a while, then disconnects. Idempotent. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closing ??= this.#close();
		await this.#closing;
	}

	async #close(): Promise<void> {
		const last = this.#state;
		this.#become({name: 'closed'});
		const reason = closedReason();
		this.#life.abort(reason);
		this.#tellWaiters(reason);
		await this.#reconnect.ended;
		await this.#replacing;
		using drain = new Scope().deadline(this.#options.drainTimeoutMs, 'calls under way');
		await abortable(Promise.allSettled(this.#work), drain.signal).catch(() => undefined);
		this.#streams.close(reason);
		for (const connection of this.#retired) {
			connection.close(reason);
		}

		if (last.name === 'connected') {
			using closing = new Scope().deadline(closeTimeoutMs, 'libvirt to close the connection');
			await last.connection.call(procedures.connectClose, undefined, closing.signal).catch(() => undefined);
			last.connection.close(reason);
		}
	}

	/** Waits for the connection. If there was one before, waits for more than one attempt. */
	async #connected(procedure: string, caller: AbortSignal, signal: AbortSignal): Promise<Connected> {
		let failure: AdaptorError | undefined;
		try {
			for (;;) {
				const outcome = await this.#attempted(signal);
				if (!(outcome instanceof AdaptorError)) {
					return outcome;
				}

				failure = outcome;
				if (this.#serverInfo === undefined || isRefusal(failure) || this.#life.signal.aborted) {
					break;
				}
			}
		} catch (error) {
			// The failure of the connection says more than the time-out.
			if (caller.aborted || failure === undefined) {
				throw error;
			}
		}

		throw new LibvirtConnectionError(procedure, false, undefined, failure);
	}

	/** Waits for the current attempt, or begins one. Returns the connection, or why the attempt failed. */
	async #attempted(signal: AbortSignal): Promise<Connected | AdaptorError> {
		switch (this.#state.name) {
			case 'connected':
				return this.#state;
			case 'closed':
				return closedReason();
			case 'idle':
				this.#become({name: 'connecting'});
				this.#reconnect.begin();
				break;
			case 'connecting':
		}

		const {promise, resolve} = Promise.withResolvers<Connected | AdaptorError>();
		this.#waiters.add(resolve);
		this.#reconnect.wake();
		try {
			return await abortable(promise, signal);
		} finally {
			this.#waiters.delete(resolve);
		}
	}

	async #connectOnce(): Promise<void> {
		const startedAt = performance.now();
		this.#adopt(await this.#connector.openPrepared(this.#events, this.#life.signal), startedAt);
	}

	#onFailure(reason: AdaptorError, attempt: number, retryInMs: number): void {
		this.#notify({kind: 'libvirt-connect-failed', error: reason, attempt, retryInMs});
		this.#tellWaiters(reason);
	}

	/**
	 * @throws the reason if the connection has already ended: data after the last answer of the handshake may do that
	 */
	#adopt({connection, server, keepalive}: PreparedConnection, startedAt: number): void {
		if (connection.lost !== undefined) {
			throw connection.lost;
		}

		if (this.#life.signal.aborted) {
			connection.close(closedReason());
			return;
		}

		this.#serverInfo = server;
		this.#connections++;
		this.#notify({
			kind: 'libvirt-connected',
			connection: this.#connections,
			durationMs: Math.round(performance.now() - startedAt),
			server,
		});
		const connected: Connected = {name: 'connected', server, connection, since: performance.now()};
		connection.watch(keepalive, this.#options.silenceTimeoutMs, heard => {
			this.#replacing = this.#replace(connected, heard);
		});
		this.#become(connected);
		this.#tellWaiters(connected);
	}

	/**
	 * Handles a silent connection: the host is slow, or the network path is dead or was dead. If a new connection
	 * succeeds while the old one stays silent, the new one is used. The old one would recover late, because TCP doubles
	 * its retransmission pauses.
	 */
	async #replace(silent: Connected, heard: AbortSignal): Promise<void> {
		using scope = new Scope(heard, this.#life.signal);
		const isWanted = (): boolean => !scope.signal.aborted && this.#state === silent;
		const replaceOnce = async (): Promise<void> => {
			if (!isWanted()) {
				return;
			}

			const startedAt = performance.now();
			const prepared = await this.#connector.openPrepared(this.#events, scope.signal);
			if (!isWanted()) {
				prepared.connection.close(
					new AdaptorError({code: 'cancelled', what: 'the silent connection has recovered'}),
				);
				return;
			}

			this.#adopt(prepared, startedAt);
			this.#notify({kind: 'libvirt-connection-replaced', transport: silent.connection.transport});
			this.#retired.add(silent.connection);
			silent.connection.retire(
				new AdaptorError({
					code: 'unavailable',
					what: 'nothing arrived on the connection, while a new one succeeded',
				}),
			);
		};

		const {
			reconnectMs: {longest},
		} = this.#options;
		await retry(
			replaceOnce,
			{
				backOff: [longest, longest],
				onFailure: error => this.#notify({kind: 'libvirt-replacement-failed', error}),
			},
			scope.signal,
		).catch(() => undefined);
	}

	async #openStream(
		procedure: string,
		signal: AbortSignal,
	): Promise<Disposable & {readonly connection: RpcConnection}> {
		if (this.#state.name === 'closed') {
			throw new LibvirtConnectionError(procedure, false, undefined, closedReason());
		}

		return await this.#streams.open(procedure, signal, this.#life.signal);
	}

	/** Called when any connection is lost; acts if it was the shared one. */
	#onLost(): void {
		for (const connection of this.#retired) {
			if (connection.lost !== undefined) {
				this.#retired.delete(connection);
			}
		}

		const state = this.#state;
		if (state.name !== 'connected' || state.connection.lost === undefined) {
			return;
		}

		const lost = state.connection.lost;
		this.#notify({
			kind: 'libvirt-lost',
			error: lost,
			transport: state.connection.transport,
			connection: this.#connections,
		});
		this.#become({name: 'connecting', lost});
		this.#reconnect.beginAgain(performance.now() - state.since >= stableMs);
	}

	#onMessage(packet: Packet): void {
		if (packet.procedure !== procedures.domainEventCallbackLifecycle.number) {
			return;
		}

		const {dom, event, detail} = decode(procedures.domainEventCallbackLifecycle.result, packet.body);
		this.#lifecycleListeners.notify(lifecycleEvent(dom, event, detail));
	}

	#become(state: State): void {
		this.#state = state;
		this.#stateListeners.notify(state);
	}

	#notify(event: Without<SessionEvent, 'uri'>): void {
		const {observer, uri} = this.#options;
		observer.notify({...event, uri});
	}

	#onListenerError(error: unknown): void {
		this.#notify({kind: 'libvirt-listener-failed', error});
	}

	#tellWaiters(outcome: Connected | AdaptorError): void {
		for (const resolve of this.#waiters) {
			resolve(outcome);
		}

		this.#waiters.clear();
	}

	async #track<T>(procedure: string, work: () => Promise<T>): Promise<T> {
		const startedAt = performance.now();
		const running = work();
		this.#work.add(running);
		let error: unknown;
		try {
			return await running;
		} catch (thrown) {
			error = thrown;
			throw thrown;
		} finally {
			this.#work.delete(running);
			this.#notifyCall(procedure, startedAt, error);
		}
	}

	#notifyCall(procedure: string, startedAt: number, error: unknown): void {
		this.#notify({kind: 'libvirt-call', procedure, durationMs: performance.now() - startedAt, error});
	}
}

function volumeRange(vol: StorageVol, {offset = 0n, length = 0n, isSparse = false}: StreamRange): VolumeRange {
	return {vol, offset: BigInt(offset), length: BigInt(length), isSparse};
}

function closedReason(): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'the libvirt session is closed'});
}

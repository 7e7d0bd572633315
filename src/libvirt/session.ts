/**
 * A libvirt connection that lasts: made by the first call, made again with back-off whenever it is lost, until
 * disposed. Knows nothing of how connections are made (connector.ts) nor of how calls share one (rpc.ts).
 *
 *   idle ──call──▶ connecting ──▶ connected ──▶ closed
 *                      ▲── lost ──────┘ ▲────┐ silent, and a new connection gets through: that one from now on
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

/** A connection that lived shorter does not count as success for the back-off. */
const stableMs = 5000;
/**
 * An upload up to this size shares the connection with the calls: the daemon reads it faster than a connection of its
 * own is made.
 */
const sharedUploadLimit = 8n * 1024n * 1024n;
/** A call whose answer is lost this often is not the victim of connections but, perhaps, what breaks them. */
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
	/** Told the connection, or why the present attempt failed. */
	readonly #waiters = new Set<(outcome: Connected | AdaptorError) => void>();
	readonly #lifecycleListeners = new Listeners<LifecycleEvent>(error => this.#onListenerError(error));
	readonly #stateListeners = new Listeners<SessionState>(error => this.#onListenerError(error));
	/** Calls and uploads under way. */
	readonly #work = new Set<Promise<unknown>>();
	readonly #reconnect: ReconnectLoop;
	readonly #connector: Connector;
	readonly #streams: StreamConnections;
	readonly #events: ConnectionEvents = {onLost: () => this.#onLost(), onMessage: packet => this.#onMessage(packet)};
	/** Silent connections whose place was taken while they carried a stream. */
	readonly #retired = new Set<RpcConnection>();
	#state: State = {name: 'idle'};
	#serverInfo: ServerInfo | undefined;
	#connections = 0;
	/** The attempts to take a silent connection's place; settled when there are none. Never rejects. */
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

	/** Of the present connection, or of the last one; undefined before the first. */
	get serverInfo(): ServerInfo | undefined {
		return this.#serverInfo;
	}

	/** Connects if it is not connected; rejects with the first attempt that fails. */
	async connect(signal: AbortSignal): Promise<ServerInfo> {
		using scope = new Scope(signal).deadline(this.#options.callTimeoutMs, 'a connection to libvirt');
		const outcome = await this.#attempted(scope.signal);
		if (outcome instanceof AdaptorError) {
			throw new LibvirtConnectionError(procedures.connectOpen.name, false, undefined, outcome);
		}

		return outcome.server;
	}

	/**
	 * Calls one procedure. The first call connects, and fails with the first attempt to. When the connection was lost,
	 * calls wait for the next one; those that were under way are made again if that cannot do harm (`retry`), all
	 * within their time.
	 * @throws LibvirtError what the daemon answered; LibvirtConnectionError ('unavailable', or the code of a refusal
	 * such as 'unauthenticated') when there is no connection or it was lost; DeadlineError after `timeoutMs`; the
	 * signal's reason. In the latter two cases the daemon may still carry the call out, and one of four calls in flight
	 * stays taken until it answers.
	 */
	async call<Args, Result>(
		procedure: Procedure<Args, Result>,
		args: Args,
		signal: AbortSignal,
		{timeoutMs = this.#options.callTimeoutMs, retry = procedure.idempotent, seeThrough = false}: CallOptions = {},
	): Promise<Result> {
		return this.#track(async () => {
			using patience = new Scope().deadline(timeoutMs, `libvirt to answer ${procedure.name}`);
			using scope = new Scope(signal, patience.signal);
			for (let lostAnswers = 0; ;) {
				const {connection} = await this.#connected(procedure.name, signal, scope.signal);
				try {
					return await connection.call(
						procedure,
						args,
						scope.signal,
						seeThrough ? patience.signal : scope.signal,
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
	 * Writes the source's bytes into the volume; resolves once the daemon has confirmed all of them. Reads the source
	 * no faster than the daemon takes it. Give `length` when it is known: small uploads then need no connection of
	 * their own.
	 * @throws as `call`; LibvirtError also in the middle ('resource-exhausted' when the storage is full). What was
	 * written stays written.
	 */
	async upload(
		vol: StorageVol,
		source: AsyncIterable<Uint8Array>,
		range: StreamRange,
		signal: AbortSignal,
	): Promise<void> {
		const {name} = procedures.storageVolUpload;
		const volume = volumeRange(vol, range);
		await this.#track(async () => {
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
	 * The volume's bytes, on a connection of its own that is read no faster than they are taken. Returning early ends
	 * the stream.
	 * @throws as `upload`
	 */
	async *download(vol: StorageVol, range: StreamRange, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		using own = await this.#openStream(procedures.storageVolDownload.name, signal);
		yield* downloadVolume(own.connection, volumeRange(vol, range), this.#options.streamTimeoutMs, signal);
	}

	/**
	 * What the domain's guest prints on its first console from now on, until it ends or the connection does. Shares the
	 * connection with the calls, so whoever takes it must be quick. Returning early gives the console back; meanwhile
	 * `virsh console` needs --force, which ends this.
	 * @throws as `call`; LibvirtError as well when somebody has the console open already
	 */
	async *console(dom: Domain, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		const {name} = procedures.domainOpenConsole;
		using scope = new Scope(signal).deadline(this.#options.callTimeoutMs, `a connection to libvirt for ${name}`);
		const {connection} = await this.#connected(name, signal, scope.signal);
		yield* consoleOutput(connection, dom, signal);
	}

	/**
	 * Lifecycle events of all domains, while connected. Does not connect by itself. Events may come before the answer
	 * of the call that caused them.
	 */
	onLifecycle(listener: (event: LifecycleEvent) => void): Disposable {
		return this.#lifecycleListeners.add(listener);
	}

	/** Every change of `state`. Whatever was learned from events is to be looked up anew after each 'connected'. */
	onState(listener: (state: SessionState) => void): Disposable {
		return this.#stateListeners.add(listener);
	}

	/** Refuses new calls at once, lets those under way finish for a while, then disconnects. Idempotent. */
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
			using goodbye = new Scope().deadline(closeTimeoutMs, 'libvirt to say goodbye');
			await last.connection.call(procedures.connectClose, undefined, goodbye.signal).catch(() => undefined);
			last.connection.close(reason);
		}
	}

	/** The connection, as soon as there is one. Whoever had one before waits for more than one attempt. */
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
			// The time is up: what kept us from a connection says more than that it is.
			if (caller.aborted || failure === undefined) {
				throw error;
			}
		}

		throw new LibvirtConnectionError(procedure, false, undefined, failure);
	}

	/** The connection, or why the attempt to make it failed that was under way, or was begun. */
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

	/** @throws what ended the connection already: what came right behind the last answer of the handshake may have */
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
	 * A silent connection: the host is slow, or the way is dead, or was. A new connection that gets through while the
	 * old one stays silent tells which. The old one's own recovery would take as long again as the way was dead, for
	 * TCP doubles its pauses.
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
					new AdaptorError({code: 'cancelled', what: 'the connection that was silent is in use'}),
				);
				return;
			}

			this.#adopt(prepared, startedAt);
			this.#notify({kind: 'libvirt-connection-replaced', transport: silent.connection.transport});
			this.#retired.add(silent.connection);
			silent.connection.retire(
				new AdaptorError({
					code: 'unavailable',
					what: 'nothing arrived on the connection, while a new one got through',
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

	/** Any connection was lost; ours to act when it was the shared one. */
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

	async #track<T>(work: () => Promise<T>): Promise<T> {
		const running = work();
		this.#work.add(running);
		try {
			return await running;
		} finally {
			this.#work.delete(running);
		}
	}
}

function volumeRange(vol: StorageVol, {offset = 0n, length = 0n, isSparse = false}: StreamRange): VolumeRange {
	return {vol, offset: BigInt(offset), length: BigInt(length), isSparse};
}

function closedReason(): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'the libvirt session is closed'});
}

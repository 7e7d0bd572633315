/**
 * A libvirt connection that lasts: made by the first call, made again with back-off whenever it is lost, until disposed.
 * Knows what a connection's life needs (authentication, opening the driver, events); knows nothing of how bytes travel
 * (pipe.ts) or of how calls share one connection (rpc.ts).
 */
import {AdaptorError, toError} from '../errors.ts';
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import {isRefusal, LibvirtConnectionError} from './errors.ts';
import {lifecycleEvent, type LifecycleEvent} from './events.ts';
import {openDriver, prepareDriver} from './handshake.ts';
import type {Packet} from './packet.ts';
import {procedures, type Procedure, type StorageVol} from './procedures.ts';
import {RpcConnection} from './rpc.ts';
import {sessionDefaults, type CallOptions, type LibvirtSessionOptions, type ServerInfo, type SessionState, type StreamRange} from './session-options.ts';
import {Slots} from './slots.ts';
import {downloadVolume, uploadVolume} from './streams.ts';
import {decode} from './xdr.ts';

/** A connection that lived shorter does not count as success for the back-off. */
const stableMs = 5000;
/** After a refusal (a key, a permission) only somebody's call makes us try again sooner than this: sshd counts failed attempts. */
const refusedPauseMs = 30_000;
/** An upload up to this size shares the connection with the calls: the daemon reads it faster than a connection of its own is made. */
const sharedUploadLimit = 8n * 1024n * 1024n;
/** Connections for streams at one time. */
const streamConnections = 4;
/** How long disposing waits for calls and uploads that are under way. */
const drainTimeoutMs = 5000;
const closeTimeoutMs = 1000;

type Connected = Extract<SessionState, {readonly name: 'connected'}> & {readonly connection: RpcConnection; readonly since: number};
type State = Exclude<SessionState, {readonly name: 'connected'}> | Connected;

export class LibvirtSession implements AsyncDisposable {
	readonly #options: Required<LibvirtSessionOptions>;
	/** Ends with the session. */
	readonly #life = new Scope();
	readonly #waiters = new Set<PromiseWithResolvers<Connected>>();
	readonly #lifecycleListeners = new Set<(event: LifecycleEvent) => void>();
	readonly #stateListeners = new Set<(state: SessionState) => void>();
	/** Calls and uploads under way. */
	readonly #work = new Set<Promise<unknown>>();
	readonly #streamSlots = new Slots(streamConnections);
	readonly #streamConnections = new Set<RpcConnection>();
	#state: State = {name: 'idle'};
	#serverInfo: ServerInfo | undefined;
	#delays: Iterator<number, never>;
	#connections = 0;
	/** The loop that makes the connection; settled while there is one. Never rejects. */
	#connecting: Promise<void> = Promise.resolve();
	/** Ends the long pause after a refusal. */
	#wake: (() => void) | undefined;
	#closing: Promise<void> | undefined;

	constructor(options: LibvirtSessionOptions) {
		this.#options = {...sessionDefaults, ...options};
		this.#delays = this.#newDelays();
	}

	get state(): SessionState {
		return this.#state;
	}

	/** Of the present connection, or of the last one; undefined before the first. */
	get serverInfo(): ServerInfo | undefined {
		return this.#serverInfo;
	}

	/** Connects if it is not connected. */
	async connect(signal: AbortSignal): Promise<ServerInfo> {
		using scope = new Scope(signal).deadline(this.#options.callTimeoutMs, 'a connection to libvirt');
		const {server} = await this.#connected(procedures.connectOpen.name, scope.signal);
		return server;
	}

	/**
	 * Calls one procedure. The first call connects; while the connection is being made, calls wait for the present attempt and fail with it.
	 * @throws LibvirtError what the daemon answered; LibvirtConnectionError ('unavailable', or the code of a refusal such as 'unauthenticated')
	 * when there is no connection or it was lost; DeadlineError after `timeoutMs`; the signal's reason.
	 * In the latter two cases the daemon may still carry the call out, and one of four calls in flight stays taken until it answers.
	 */
	async call<Args, Result>(procedure: Procedure<Args, Result>, args: Args, signal: AbortSignal, {timeoutMs = this.#options.callTimeoutMs}: CallOptions = {}): Promise<Result> {
		return this.#track(async () => {
			using scope = new Scope(signal).deadline(timeoutMs, `libvirt to answer ${procedure.name}`);
			const {connection} = await this.#connected(procedure.name, scope.signal);
			return await connection.call(procedure, args, scope.signal);
		});
	}

	/**
	 * Writes the source's bytes into the volume; resolves once the daemon has confirmed all of them. Reads the source no faster than the daemon takes it.
	 * Give `length` when it is known: small uploads then need no connection of their own.
	 * @throws as `call`; LibvirtError also in the middle ('resource-exhausted' when the storage is full). What was written stays written.
	 */
	async upload(vol: StorageVol, source: AsyncIterable<Uint8Array>, range: StreamRange, signal: AbortSignal): Promise<void> {
		const {name} = procedures.storageVolUpload;
		const volume = volumeRange(vol, range);
		await this.#track(async () => {
			if (volume.length > 0n && volume.length <= sharedUploadLimit) {
				const {connection} = await this.#connectedInTime(name, signal);
				await uploadVolume(connection, volume, source, this.#options.streamTimeoutMs, signal);
				return;
			}

			using own = await this.#streamConnection(name, signal);
			await uploadVolume(own.connection, volume, source, this.#options.streamTimeoutMs, signal);
		});
	}

	/**
	 * The volume's bytes, on a connection of its own that is read no faster than they are taken. Returning early ends the stream.
	 * @throws as `upload`
	 */
	async* download(vol: StorageVol, range: StreamRange, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined> {
		using own = await this.#streamConnection(procedures.storageVolDownload.name, signal);
		yield* downloadVolume(own.connection, volumeRange(vol, range), this.#options.streamTimeoutMs, signal);
	}

	/** Lifecycle events of all domains, while connected. Does not connect by itself. Events may come before the answer of the call that caused them. */
	onLifecycle(listener: (event: LifecycleEvent) => void): Disposable {
		return subscribe(this.#lifecycleListeners, listener);
	}

	/** Every change of `state`. Whatever was learned from events is to be looked up anew after each 'connected'. */
	onState(listener: (state: SessionState) => void): Disposable {
		return subscribe(this.#stateListeners, listener);
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
		this.#rejectWaiters(reason);
		await this.#connecting;
		using drain = new Scope().deadline(drainTimeoutMs, 'calls under way');
		await abortable(Promise.allSettled(this.#work), drain.signal).catch(() => undefined);
		for (const connection of this.#streamConnections) {
			connection.close(reason);
		}

		if (last.name === 'connected') {
			using goodbye = new Scope().deadline(closeTimeoutMs, 'libvirt to say goodbye');
			await last.connection.call(procedures.connectClose, undefined, goodbye.signal).catch(() => undefined);
			last.connection.close(reason);
		}
	}

	/** The connection, as soon as there is one. */
	async #connected(procedure: string, signal: AbortSignal): Promise<Connected> {
		if (this.#state.name === 'connected') {
			return this.#state;
		}

		const waiter = Promise.withResolvers<Connected>();
		this.#waiters.add(waiter);
		this.#wake?.();
		if (this.#state.name === 'closed') {
			this.#rejectWaiters(closedReason());
		} else if (this.#state.name === 'idle') {
			this.#become({name: 'connecting'});
			this.#connecting = this.#keepConnecting(0);
		}

		try {
			return await abortable(waiter.promise, signal);
		} catch (error) {
			throw signal.aborted ? error : new LibvirtConnectionError(procedure, false, undefined, rootReason(error));
		} finally {
			this.#waiters.delete(waiter);
		}
	}

	async #connectedInTime(procedure: string, signal: AbortSignal): Promise<Connected> {
		using scope = new Scope(signal).deadline(this.#options.callTimeoutMs, `a connection to libvirt for ${procedure}`);
		return await this.#connected(procedure, scope.signal);
	}

	/** Tries until there is a connection or the session ends. Never throws. */
	async #keepConnecting(firstDelayMs: number): Promise<void> {
		let delayMs = firstDelayMs;
		let refused = false;
		for (let attempt = 1; ; attempt++) {
			try {
				await this.#pause(delayMs, refused);
				await this.#attempt();
				return;
			} catch (error) {
				if (this.#life.signal.aborted) {
					return;
				}

				const reason = rootReason(error);
				delayMs = this.#delays.next().value;
				refused = isRefusal(reason);
				// The first attempts, then fewer and fewer: an outage of a night is not to fill the log.
				const level = Number.isInteger(Math.log2(attempt)) ? 'warn' : 'debug';
				this.#options.log[level]({err: reason, attempt, uri: this.#options.uri, retryInMs: refused ? refusedPauseMs : delayMs}, 'could not connect to libvirt');
				this.#rejectWaiters(reason);
			}
		}
	}

	async #pause(delayMs: number, refused: boolean): Promise<void> {
		await pause(delayMs, this.#life.signal);
		if (!refused || this.#waiters.size > 0) {
			return;
		}

		using scope = new Scope(this.#life.signal);
		this.#wake = () => scope.abort(new Error('somebody calls'));
		await pause(refusedPauseMs, scope.signal).catch(() => undefined);
		this.#wake = undefined;
		this.#life.signal.throwIfAborted();
	}

	async #attempt(): Promise<void> {
		using scope = new Scope(this.#life.signal).deadline(this.#options.connectTimeoutMs, 'libvirt\'s answers to a new connection');
		const startedAt = performance.now();
		const connection = await this.#open(scope.signal);
		try {
			const {keepalive, ...about} = await prepareDriver(connection, scope.signal);
			// What came right behind the last answer may have ended it already, before our state said that it is ours to watch.
			if (connection.lost !== undefined) {
				throw connection.lost;
			}

			connection.watch(keepalive, this.#options.silenceTimeoutMs);
			this.#serverInfo = {...about, transport: connection.transport};
		} catch (error) {
			connection.close(rootReason(error));
			throw error;
		}

		this.#connections++;
		this.#options.log.info({
			uri: this.#options.uri,
			connection: this.#connections,
			durationMs: Math.round(performance.now() - startedAt),
			host: this.#serverInfo.hostname,
			libvirtVersion: this.#serverInfo.libvirtVersion,
			transport: connection.transport,
		}, 'libvirt connected');
		const connected: Connected = {name: 'connected', server: this.#serverInfo, connection, since: performance.now()};
		this.#become(connected);
		for (const waiter of this.#waiters) {
			waiter.resolve(connected);
		}
	}

	/** A connection with its driver open. */
	async #open(signal: AbortSignal): Promise<RpcConnection> {
		const pipe = await this.#options.openPipe(signal);
		const connection = new RpcConnection(pipe, {
			onLost: () => this.#onLost(),
			onMessage: packet => this.#onMessage(packet),
			onIgnored: packet => this.#options.log.debug({reason: `serial ${packet.serial}, procedure ${packet.procedure}`}, 'libvirt packet ignored'),
		});
		try {
			await openDriver(connection, this.#options.uri, signal);
			return connection;
		} catch (error) {
			connection.close(rootReason(error));
			throw error;
		}
	}

	/** A connection for one stream: without events and pings, so that a slow reader may stop it. */
	async #streamConnection(procedure: string, signal: AbortSignal): Promise<Disposable & {readonly connection: RpcConnection}> {
		if (this.#state.name === 'closed') {
			throw new LibvirtConnectionError(procedure, false, undefined, closedReason());
		}

		using scope = new Scope(signal, this.#life.signal).deadline(this.#options.callTimeoutMs, `a connection to libvirt for ${procedure}`);
		await this.#streamSlots.acquire(scope.signal);
		try {
			const connection = await this.#open(scope.signal);
			this.#streamConnections.add(connection);
			return {
				connection,
				[Symbol.dispose]: () => {
					connection.close(new AdaptorError({code: 'cancelled', what: 'the stream is over'}));
					if (this.#streamConnections.delete(connection)) {
						this.#streamSlots.release();
					}
				},
			};
		} catch (error) {
			this.#streamSlots.release();
			throw scope.signal.aborted ? error : new LibvirtConnectionError(procedure, false, undefined, rootReason(error));
		}
	}

	/** Any connection was lost; ours to act when it was the shared one. */
	#onLost(): void {
		const state = this.#state;
		if (state.name !== 'connected' || state.connection.lost === undefined) {
			return;
		}

		const lost = state.connection.lost;
		const wasStable = performance.now() - state.since >= stableMs;
		if (wasStable) {
			this.#delays = this.#newDelays();
		}

		this.#options.log.warn({err: lost, uri: this.#options.uri, transport: state.connection.transport, connection: this.#connections}, 'libvirt connection lost');
		this.#become({name: 'connecting', lost});
		this.#connecting = this.#keepConnecting(wasStable ? 0 : this.#delays.next().value);
	}

	#onMessage(packet: Packet): void {
		if (packet.procedure !== procedures.domainEventCallbackLifecycle.number) {
			return;
		}

		const {dom, event, detail} = decode(procedures.domainEventCallbackLifecycle.result, packet.body);
		this.#tell(this.#lifecycleListeners, lifecycleEvent(dom, event, detail));
	}

	#become(state: State): void {
		this.#state = state;
		this.#tell(this.#stateListeners, state);
	}

	/** A listener's error is its own: it ends neither the connection nor the other listeners' turn. */
	#tell<T>(listeners: ReadonlySet<(value: T) => void>, value: T): void {
		for (const listener of [...listeners]) {
			try {
				listener(value);
			} catch (error) {
				this.#options.log.warn({err: error}, 'a listener of the libvirt session failed');
			}
		}
	}

	#rejectWaiters(reason: AdaptorError): void {
		for (const waiter of this.#waiters) {
			waiter.promise.catch(() => undefined);
			waiter.reject(reason);
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

	#newDelays(): Iterator<number, never> {
		return backOff(this.#options.reconnectMs.first, this.#options.reconnectMs.longest);
	}
}

function volumeRange(vol: StorageVol, {offset = 0n, length = 0n}: StreamRange): {vol: StorageVol; offset: bigint; length: bigint} {
	return {vol, offset: BigInt(offset), length: BigInt(length)};
}

function subscribe<T>(listeners: Set<T>, listener: T): Disposable {
	listeners.add(listener);
	return {
		[Symbol.dispose]: () => {
			listeners.delete(listener);
		},
	};
}

function closedReason(): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'the libvirt session is closed'});
}

/** What is behind a failed handshake, in words that can stand after a colon. */
function rootReason(thrown: unknown): AdaptorError {
	const reason = thrown instanceof LibvirtConnectionError && thrown.cause instanceof AdaptorError ? thrown.cause : thrown;
	return reason instanceof AdaptorError ? reason : new AdaptorError({code: 'unavailable', what: toError(reason).message, cause: reason});
}

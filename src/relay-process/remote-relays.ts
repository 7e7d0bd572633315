/**
 * `AgentRelays` in the relay process. Relays stay open when this daemon ends, and the next daemon finds them again. If
 * the relay process ends, its sockets are gone too; they are opened again in the next relay process. After a newer
 * relay process has taken over, the older one still serves its pods, so both are used.
 */
import {randomBytes} from 'node:crypto';
import {lstat, readdir, unlink} from 'node:fs/promises';
import {basename, dirname, join} from 'node:path';
import type {ServiceDefinition} from '@grpc/proto-loader';
import {every, Trigger} from '../core/concurrency/every.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {abortable, DeadlineError, neverAborts, Scope} from '../core/lifetime.ts';
import {Secret, type Logger} from '../core/log.ts';
import type {Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import {answers, checkSocketPath} from '../core/unix-listener.ts';
import {discardSocket} from '../relay/agent-socket.ts';
import type {RelayEvent} from '../relay/events.ts';
import {onlyAddress} from '../relay/vm-connector.ts';
import type {AgentRelay, AgentRelays, ForwarderTls, RelayTarget, SandboxId} from '../sandbox/ports.ts';
import {TtrpcError} from '../ttrpc/status.ts';
import {errorOf} from './error-parts.ts';
import {loadRelayContract} from './contract.ts';
import type {RelayProcessEvent} from './events.ts';
import {RelayLink} from './relay-link.ts';

export interface RemoteRelaysOptions {
	readonly relaySocket: string;
	readonly observer: Observer<RelayEvent>;
	readonly log: Logger;
	/** Interval of checks for another relay process. */
	readonly scanIntervalMs?: number;
}

/** Calls of shims wait at most this long after a relay process has started. A check is a few system calls. */
const defaultScanIntervalMs = 1000;
/** Time limit for the relay process to abort an opening; this is fast. */
const closeTimeoutMs = 5000;
/** Time limit for reaching the VM again: it was reached before, so its forwarder already listens. */
const reopenTimeoutMs = 20_000;
const reopenBackOff = [100, 5000] as const;

export class RemoteRelays implements AgentRelays, AsyncDisposable {
	readonly #options: RemoteRelaysOptions;
	readonly #contract: ServiceDefinition = loadRelayContract();
	/** By inode of the socket. */
	readonly #links = new Map<bigint, RelayLink>();
	readonly #handles = new Set<RemoteRelay>();
	/** Relays that are being opened. */
	readonly #openings = new Map<SandboxId, RelayTarget>();
	readonly #ending = new AbortController();
	readonly #look = new Trigger();
	readonly #failures = new FailureLog();
	#primary: bigint | undefined;
	#served: string | undefined;
	#onChange: () => void = () => undefined;
	#watching: Promise<void> = Promise.resolve();

	private constructor(options: RemoteRelaysOptions) {
		this.#options = options;
	}

	/** @throws AdaptorError 'unavailable' if no relay process answers */
	static async connect(options: RemoteRelaysOptions, signal: AbortSignal): Promise<RemoteRelays> {
		const relays = new RemoteRelays(options);
		await relays.#scan(signal);
		if (relays.#primaryLink === undefined) {
			await relays[Symbol.asyncDispose]();
			throw noProcess(options.relaySocket);
		}

		relays.#watching = relays.#watch();
		return relays;
	}

	/** Called when another daemon or a relay process has ended: their leftovers must be found. */
	set onChange(listener: () => void) {
		this.#onChange = listener;
	}

	/** A path beside relay.sock where this daemon can serve calls. Removes the sockets of daemons that were killed. */
	async freeDaemonSocket(signal: AbortSignal): Promise<string> {
		const directory = dirname(this.#options.relaySocket);
		const names = (await readdir(directory)).filter(name => /^daemon-[\da-f]{8}\.sock$/v.test(name));
		for (const path of names.map(name => join(directory, name))) {
			if (!(await answers(path, signal))) {
				await unlink(path).catch(() => undefined);
			}
		}

		return join(directory, `daemon-${randomBytes(4).toString('hex')}.sock`);
	}

	/** From now on, the relay process sends the calls of shims to this socket. */
	async register(socketPath: string, signal: AbortSignal): Promise<AsyncDisposable> {
		this.#served = socketPath;
		await Promise.all([...this.#links.values()].map(async link => this.#registerAt(link, socketPath, signal)));
		return {
			[Symbol.asyncDispose]: async () => {
				this.#served = undefined;
				// If a process does not answer, it still notices the end of the connection.
				await Promise.allSettled(
					[...this.#links.values()].map(async link => link.call('Unregister', {}, neverAborts)),
				);
			},
		};
	}

	async issue(instanceName: string, signal: AbortSignal): Promise<ForwarderTls> {
		const issued = await asOwn(this.#anyLink().call('Issue', {instance_name: instanceName}, signal));
		const text = (value: string): string | undefined => (value === '' ? undefined : value);
		return present({
			serverKey: issued.server_key === '' ? undefined : new Secret(issued.server_key),
			serverCert: text(issued.server_cert),
			clientCa: text(issued.client_ca),
			minVersion: text(issued.min_version) as ForwarderTls['minVersion'],
			cipherSuites: issued.cipher_suites.length === 0 ? undefined : issued.cipher_suites,
		});
	}

	async open(target: RelayTarget, addresses: AsyncIterable<string>, signal: AbortSignal): Promise<AgentRelay> {
		signal.throwIfAborted();
		this.assertServable(target.socketPath);
		const link = this.#linkOf(target.sandboxId);
		this.#openings.set(target.sandboxId, target);
		using _opening = {[Symbol.dispose]: () => this.#openings.delete(target.sandboxId)};
		const address = await this.#open(link, target, addresses, signal);
		const handle = new RemoteRelay(target, address, {
			linkOf: () => this.#links.get(this.#inodeOf(target.sandboxId)),
			forget: disposed => this.#handles.delete(disposed),
		});
		this.#handles.add(handle);
		return handle;
	}

	assertServable(socketPath: string): void {
		checkSocketPath({path: socketPath, setting: 'PODS_DIR'});
	}

	async discard(socketPath: string): Promise<void> {
		if (this.#links.size === 0) {
			await discardSocket(socketPath);
		}

		await Promise.all(
			[...this.#links.values()].map(async link =>
				asOwn(link.call('Discard', {socket_path: socketPath}, neverAborts)),
			),
		);
	}

	/** Leaves all relays open. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#ending.abort(new AdaptorError({code: 'unavailable', what: 'The daemon is stopping'}));
		await this.#watching;
		await Promise.all([...this.#links.values()].map(async link => link[Symbol.asyncDispose]()));
	}

	get #primaryLink(): RelayLink | undefined {
		return this.#primary === undefined ? undefined : this.#links.get(this.#primary);
	}

	/** @throws 'unavailable' */
	#anyLink(): RelayLink {
		const link = this.#primaryLink ?? this.#links.values().next().value;
		if (link === undefined) {
			throw noProcess(this.#options.relaySocket);
		}

		return link;
	}

	/** The relay process that serves the sandbox, otherwise the newest one. */
	#linkOf(sandboxId: SandboxId): RelayLink {
		return this.#links.get(this.#inodeOf(sandboxId)) ?? this.#anyLink();
	}

	#inodeOf(sandboxId: SandboxId): bigint {
		return [...this.#links].find(([, {sandboxes}]) => sandboxes.has(sandboxId))?.[0] ?? -1n;
	}

	/** @returns the address */
	async #open(
		link: RelayLink,
		{sandboxId, instanceName, socketPath}: RelayTarget,
		addresses: AsyncIterable<string>,
		signal: AbortSignal,
	): Promise<string> {
		using scope = new Scope(signal);
		const target = {sandbox_id: sandboxId, instance_name: instanceName, socket_path: socketPath};
		// The relay process ends it, so that its error contains the progress of the opening.
		const opening = link.wait('Open', target, neverAborts);
		opening.catch(() => undefined);
		const iterator = addresses[Symbol.asyncIterator]();
		const offering = this.#offer(link, sandboxId, iterator, scope.signal);
		try {
			const {address} = await abortable(Promise.race([opening, offering]), scope.signal);
			link.sandboxes.add(sandboxId);
			return address;
		} catch (error) {
			await this.#endOpening(link, sandboxId, signal);
			throw await this.#reasonOf(error, opening, signal);
		} finally {
			scope.abort(new Error('opened'));
			// Not awaited: a generator finishes its current step first.
			iterator.return?.().catch(() => undefined);
		}
	}

	/** Rejects if `addresses` throws, or if it ends without an address. Otherwise it never settles. */
	async #offer(
		link: RelayLink,
		sandboxId: SandboxId,
		iterator: AsyncIterator<string>,
		signal: AbortSignal,
	): Promise<never> {
		let count = 0;
		for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) {
			count++;
			await link.call('Offer', {sandbox_id: sandboxId, address: next.value}, signal);
		}

		if (count === 0) {
			throw new AdaptorError({code: 'unavailable', what: 'Could not reach the pod VM: no address was found'});
		}

		return abortable(new Promise<never>(() => undefined), signal);
	}

	async #endOpening(link: RelayLink, sandboxId: SandboxId, signal: AbortSignal): Promise<void> {
		const isLate = signal.aborted && codeOf(signal.reason) === 'deadline-exceeded';
		await link
			.call(
				'Close',
				{
					sandbox_id: sandboxId,
					deadline_exceeded: isLate,
					time_limit: signal.reason instanceof DeadlineError ? signal.reason.limit : '',
				},
				neverAborts,
				closeTimeoutMs,
			)
			.catch(() => undefined);
	}

	/** After a deadline, the error of the relay process contains the progress of the opening. */
	async #reasonOf(error: unknown, opening: Promise<unknown>, signal: AbortSignal): Promise<Error> {
		if (signal.aborted && codeOf(signal.reason) === 'deadline-exceeded') {
			using limit = new Scope().deadline(closeTimeoutMs, 'the relay process');
			return await abortable(opening, limit.signal).then(
				() => toError(error),
				(told: unknown) => (told instanceof TtrpcError ? errorOf(told) : toError(error)),
			);
		}

		return error instanceof TtrpcError ? errorOf(error) : toError(error);
	}

	async #registerAt(link: RelayLink, socketPath: string, signal: AbortSignal): Promise<void> {
		await asOwn(link.call('Register', {socket_path: socketPath}, signal));
	}

	async #watch(): Promise<void> {
		const {log, scanIntervalMs = defaultScanIntervalMs} = this.#options;
		const {signal} = this.#ending;
		for await (const _ of every(scanIntervalMs, signal, this.#look)) {
			try {
				await this.#scan(signal);
				this.#failures.recovered('look');
			} catch (error) {
				if (!signal.aborted && this.#failures.failed('look')) {
					log.warn({err: error}, 'could not search for relay processes; retrying');
				}
			}
		}
	}

	/** Connects to the relay processes on this node that this daemon has no connection to. */
	async #scan(signal: AbortSignal): Promise<void> {
		const {relaySocket} = this.#options;
		const directory = dirname(relaySocket);
		const names = (await readdir(directory).catch(() => [])).filter(name => /^relay(?:-\d+)?\.sock$/v.test(name));
		// relay.sock is the socket of the newest process, so it is connected last.
		for (const path of names.map(name => join(directory, name)).sort((a, b) => b.length - a.length)) {
			const found = await lstat(path, {bigint: true}).catch(() => undefined);
			if (found?.isSocket() !== true) {
				continue;
			}

			if (!this.#links.has(found.ino)) {
				await this.#link(path, found.ino, signal);
			} else if (path === relaySocket) {
				this.#primary = found.ino;
			}
		}
	}

	async #link(path: string, inode: bigint, signal: AbortSignal): Promise<void> {
		const {relaySocket, log} = this.#options;
		if (!(await answers(path, signal))) {
			// The file was left by a killed process.
			if (path !== relaySocket) {
				await unlink(path).catch(() => undefined);
			}

			return;
		}

		const link = await RelayLink.to(path, this.#contract, signal);
		this.#links.set(inode, link);
		if (path === relaySocket) {
			this.#primary = inode;
		}

		link.lost.addEventListener('abort', () => this.#lost(inode, link), {once: true});
		void link.watch(event => this.#onEvent(event));
		log.info({path, count: link.sandboxes.size}, 'connected to the relay process');
		if (this.#served !== undefined) {
			await this.#registerAt(link, this.#served, signal);
		}

		for (const handle of this.#handles) {
			if (this.#inodeOf(handle.target.sandboxId) === -1n && path === relaySocket) {
				void this.#reopen(handle, link);
			}
		}
	}

	#onEvent(event: RelayEvent | RelayProcessEvent): void {
		if ('sandbox' in event) {
			this.#options.observer.notify(event);
			if (event.kind === 'address-progress') {
				this.#openings.get(event.sandbox.sandboxId)?.onProgress?.(event.address, event.progress);
			}
		} else if (event.kind === 'daemon-gone') {
			this.#onChange();
		}
	}

	#lost(inode: bigint, link: RelayLink): void {
		this.#links.delete(inode);
		if (this.#primary === inode) {
			this.#primary = undefined;
		}

		if (!this.#ending.signal.aborted) {
			const fields = {path: basename(link.path), count: link.sandboxes.size};
			if (link.sandboxes.size === 0) {
				this.#options.log.info(fields, 'the relay process ended; it had no pods');
			} else {
				this.#options.log.error(fields, 'the relay process ended; the shims will end its pods');
			}

			this.#look.fire();
			this.#onChange();
		}
	}

	/** Opens the relay again, in a relay process that has just started. Never rejects. */
	async #reopen(handle: RemoteRelay, link: RelayLink): Promise<void> {
		const {target, address} = handle;
		using scope = new Scope(link.lost, handle.disposed, this.#ending.signal);
		await retry(
			async () => {
				using attempt = new Scope(scope.signal).deadline(reopenTimeoutMs, 'the VM to answer');
				await this.#open(link, target, onlyAddress(address), attempt.signal);
			},
			{backOff: reopenBackOff},
			scope.signal,
		).then(
			() => handle.repeatFailure(),
			() => undefined,
		);
	}
}

interface HandleContext {
	readonly linkOf: () => RelayLink | undefined;
	readonly forget: (handle: RemoteRelay) => void;
}

class RemoteRelay implements AgentRelay {
	readonly target: RelayTarget;
	readonly address: string;
	readonly #context: HandleContext;
	readonly #disposal = new AbortController();
	#failure: string | undefined;
	#closed: Promise<void> | undefined;

	constructor(target: RelayTarget, address: string, context: HandleContext) {
		this.target = target;
		this.address = address;
		this.#context = context;
	}

	get disposed(): AbortSignal {
		return this.#disposal.signal;
	}

	fail(reason: Error): void {
		if (this.#closed === undefined) {
			this.#failure ??= reason.message;
			this.repeatFailure();
		}
	}

	repeatFailure(): void {
		if (this.#failure !== undefined) {
			this.#context
				.linkOf()
				?.call('Fail', {sandbox_id: this.target.sandboxId, reason: this.#failure}, neverAborts)
				.catch(() => undefined);
		}
	}

	async leave(): Promise<void> {
		this.#disposal.abort(new Error('left'));
		this.#context.forget(this);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		return this.#closed;
	}

	async #close(): Promise<void> {
		const {sandboxId} = this.target;
		await this.leave();
		const link = this.#context.linkOf();
		if (link === undefined) {
			// The relay process of this socket has ended and left the file.
			await discardSocket(this.target.socketPath);
			return;
		}

		await asOwn(link.call('Close', {sandbox_id: sandboxId, deadline_exceeded: false, time_limit: ''}, neverAborts));
		link.sandboxes.delete(sandboxId);
	}
}

/** Converts an error of the relay process to the error that a local relay would throw. */
async function asOwn<T>(call: Promise<T>): Promise<T> {
	try {
		return await call;
	} catch (error) {
		throw error instanceof TtrpcError ? errorOf(error) : error;
	}
}

function noProcess(path: string): AdaptorError {
	return new AdaptorError({
		code: 'unavailable',
		what: 'The relay process does not answer',
		where: {path},
		remedy: 'Check the pod of osc-caa-relay on this node.',
	});
}

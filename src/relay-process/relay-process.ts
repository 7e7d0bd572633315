/**
 * The relay process: owns hypervisor.sock and relay.sock, and through `AgentRelays` the agent sockets of the pods and
 * the connections to their VMs. When a daemon ends or is replaced, the connections of the shims stay open.
 *
 * A second relay process takes over both sockets and serves all new pods. The first one can still be reached at
 * `relay-<inode>.sock`. It continues to serve its pods, and ends by itself when its last pod has ended.
 */
import {link, lstat, unlink} from 'node:fs/promises';
import type {Socket} from 'node:net';
import type {ServiceDefinition} from '@grpc/proto-loader';
import {every, Trigger} from '../core/concurrency/every.ts';
import type {Logger} from '../core/log.ts';
import type {Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import {listen} from '../core/server-socket.ts';
import {answers} from '../core/unix-listener.ts';
import type {RelayEvent} from '../relay/events.ts';
import type {AgentRelays} from '../sandbox/ports.ts';
import {TtrpcServer} from '../ttrpc/server.ts';
import {loadRelayContract} from './contract.ts';
import {EventJournal} from './event-journal.ts';
import type {RelayProcessEvent} from './events.ts';
import {HypervisorFront} from './hypervisor-front.ts';
import {RelayLink} from './relay-link.ts';
import {RegisteredDaemons} from './registered-daemons.ts';
import {DaemonConnection, type RelayServiceContext} from './relay-service.ts';
import {RelayTable} from './relay-table.ts';
import {asideOf, relaySocketBeside} from './socket-paths.ts';
import {toStatusWithParts} from './error-parts.ts';

export interface RelayProcessOptions {
	/** Path of the socket of the hypervisor API. relay.sock is beside it. */
	readonly hypervisorSocket: string;
	/** @param observer must be notified of each event of a relay */
	readonly makeRelays: (observer: Observer<RelayEvent>) => AgentRelays;
	readonly observer: Observer<RelayEvent | RelayProcessEvent>;
	readonly log: Logger;
	/** How long a call of a shim waits for a daemon if it has no deadline. */
	readonly waitMs?: number;
	/** Interval of checks of the sockets. */
	readonly scanIntervalMs?: number;
}

/** Shims wait at most this long for hypervisor.sock after a daemon has released it. A check is one system call. */
const defaultScanIntervalMs = 1000;

export class RelayProcess implements AsyncDisposable {
	readonly #options: RelayProcessOptions;
	readonly #relaySocket: string;
	readonly #table: RelayTable;
	readonly #daemons: RegisteredDaemons;
	readonly #front: HypervisorFront;
	readonly #service: DaemonServer;
	readonly #contract = loadRelayContract();
	readonly #listeners = new AsyncDisposableStack();
	readonly #ending = new AbortController();
	readonly #ended = Promise.withResolvers<undefined>();
	/** Triggers a check of the sockets. */
	readonly #look = new Trigger();
	#watching: Promise<void> = Promise.resolve();
	/** Inode of relay.sock. */
	#inode = 0n;
	#servesHypervisor = false;
	#isSuperseded = false;

	private constructor(options: RelayProcessOptions) {
		const {hypervisorSocket, makeRelays, observer, waitMs} = options;
		this.#options = options;
		this.#relaySocket = relaySocketBeside(hypervisorSocket);
		const events = new EventJournal<RelayEvent | RelayProcessEvent>();
		const look = this.#look;
		const relays = makeRelays({
			notify(event) {
				observer.notify(event);
				if (!isFrequent(event)) {
					events.add(event);
				}
			},
		});
		this.#table = new RelayTable(relays);
		this.#daemons = new RegisteredDaemons({
			notify(event) {
				observer.notify(event);
				events.add(event);
				look.fire();
			},
		});
		this.#front = new HypervisorFront({daemons: this.#daemons, observer, ...present({waitMs})});
		this.#service = new DaemonServer(this.#contract, {
			relays,
			table: this.#table,
			daemons: this.#daemons,
			events,
		});
	}

	/** Serves when this resolves. @throws as `listen` */
	static async start(options: RelayProcessOptions, signal: AbortSignal): Promise<RelayProcess> {
		await using undo = new AsyncDisposableStack();
		const started = undo.use(new RelayProcess(options));
		await started.#begin(signal);
		undo.move();
		return started;
	}

	/** Resolves when another relay process has taken over and nothing is left to serve here. */
	get ended(): Promise<undefined> {
		return this.#ended.promise;
	}

	/** The path to which daemons connect. */
	get socketPath(): string {
		return this.#relaySocket;
	}

	/** Whether a newer relay process has taken over. */
	async isSuperseded(): Promise<boolean> {
		this.#isSuperseded ||= await this.#seesSuccessor(this.#ending.signal);
		return this.#isSuperseded;
	}

	/** @throws AdaptorError if no relay process answers at relay.sock; the reason of the signal */
	async assertReachable(signal: AbortSignal): Promise<void> {
		await using _link = await RelayLink.to(this.#relaySocket, this.#contract, signal);
	}

	/** Number of pods that are served. */
	get pods(): number {
		return this.#table.size;
	}

	/** Closes all sockets and connections. The shims that were connected then end their pods. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#ending.abort(new Error('closed'));
		await this.#watching;
		await this.#listeners.disposeAsync();
		await Promise.all([
			this.#front[Symbol.asyncDispose](),
			this.#service[Symbol.asyncDispose](),
			this.#table[Symbol.asyncDispose](),
		]);
		await unlink(asideOf(this.#relaySocket, this.#inode)).catch(() => undefined);
	}

	async #begin(signal: AbortSignal): Promise<void> {
		const {hypervisorSocket, log, scanIntervalMs = defaultScanIntervalMs} = this.#options;
		const takesOver = await this.#setFormerAside(signal);
		this.#listeners.use(await listen(this.#relaySocket, socket => this.#service.accept(socket), log, signal));
		this.#inode = (await lstat(this.#relaySocket, {bigint: true})).ino;
		// If a daemon serves hypervisor.sock itself, it keeps the socket until it registers here or ends, because its
		// shims are connected to it.
		if (takesOver || !(await isServed(hypervisorSocket, signal))) {
			await this.#serveHypervisor(signal);
		}

		this.#watching = this.#watch(scanIntervalMs).catch((error: unknown) => {
			if (!this.#ending.signal.aborted) {
				log.error({err: error}, 'the relay process no longer checks its sockets');
			}
		});
	}

	/**
	 * Gives the socket of a running relay process a second name, so that the process stays reachable. @returns whether
	 * such a process runs
	 */
	async #setFormerAside(signal: AbortSignal): Promise<boolean> {
		if (!(await isServed(this.#relaySocket, signal))) {
			return false;
		}

		const {ino} = await lstat(this.#relaySocket, {bigint: true});
		await link(this.#relaySocket, asideOf(this.#relaySocket, ino));
		return true;
	}

	async #serveHypervisor(signal: AbortSignal): Promise<void> {
		const {hypervisorSocket, log} = this.#options;
		this.#listeners.use(await listen(hypervisorSocket, socket => this.#front.accept(socket), log, signal));
		this.#servesHypervisor = true;
	}

	async #watch(scanIntervalMs: number): Promise<void> {
		const {signal} = this.#ending;
		for await (const _ of every(scanIntervalMs, signal, this.#look)) {
			if (!this.#servesHypervisor && (await this.#mayServeHypervisor(signal))) {
				await this.#serveHypervisor(signal);
			}

			if ((await this.isSuperseded()) && this.#table.size === 0 && this.#front.callers === 0) {
				this.#ended.resolve(undefined);
				return;
			}
		}
	}

	async #mayServeHypervisor(signal: AbortSignal): Promise<boolean> {
		return this.#daemons.current !== undefined || !(await isServed(this.#options.hypervisorSocket, signal));
	}

	async #seesSuccessor(signal: AbortSignal): Promise<boolean> {
		const found = await lstat(this.#relaySocket, {bigint: true}).catch(() => undefined);
		if (found === undefined || found.ino === this.#inode || !(await answers(this.#relaySocket, signal))) {
			return false;
		}

		this.#front.endUnbound();
		this.#options.log.warn(
			{path: asideOf(this.#relaySocket, this.#inode), count: this.#table.size},
			'a newer relay process serves new pods; this one continues until its last pod ends',
		);
		return true;
	}
}

/**
 * Serves relay.sock. Each connection has a separate server, because the openings and the registration of a daemon end
 * with its connection.
 */
class DaemonServer implements AsyncDisposable {
	readonly #context: RelayServiceContext;
	readonly #definition: ServiceDefinition;
	readonly #servers = new Set<TtrpcServer>();

	constructor(definition: ServiceDefinition, context: RelayServiceContext) {
		this.#definition = definition;
		this.#context = context;
	}

	accept(socket: Socket): void {
		const connection = new DaemonConnection(this.#context);
		const server = new TtrpcServer({toStatus: toStatusWithParts});
		server.register({definition: this.#definition, handlers: connection.handlers});
		this.#servers.add(server);
		socket.once('close', () => {
			this.#servers.delete(server);
			connection[Symbol.dispose]();
		});
		server.serve(socket);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await Promise.all([...this.#servers].map(async server => server.close()));
	}
}

/** Such events are too frequent to send to the daemon. */
function isFrequent({kind}: RelayEvent): boolean {
	return kind === 'agent-call' || kind === 'shim-connected';
}

async function isServed(path: string, signal: AbortSignal): Promise<boolean> {
	return (await lstat(path).catch(() => undefined))?.isSocket() === true && answers(path, signal);
}

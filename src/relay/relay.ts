/**
 * The kata agent's traffic: a unix socket for the shim, mutual TLS to the VM's forwarder, and nothing in between but bytes.
 * Puts the parts together: identity, dialling, socket, conversations. Decides nothing about sandboxes.
 */
import type {Socket} from 'node:net';
import {createSecureContext, type ConnectionOptions, type TLSSocket} from 'node:tls';
import {toError} from '../errors.ts';
import {Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import type {AgentRelay, AgentRelays, RelayTarget} from '../sandbox/ports.ts';
import {checkAgentSocketPath, discardSocket, listenForShims} from './agent-socket.ts';
import {Conversation, ShimLeg, VmLeg} from './conversation.ts';
import {defaultDialTimings, dial, type Dialled, type DialTarget, type DialTimings} from './dial.ts';
import type {RelayIdentity} from './identity.ts';
import {forwarderOptions, secureContextOptions, type TlsOptions} from './tls-options.ts';

export interface AgentRelaysOptions {
	readonly identity: RelayIdentity;
	/** TCP port of the forwarder in the VM. */
	readonly forwarderPort: number;
	readonly tls?: TlsOptions;
	readonly log: Logger;
	readonly timings?: Partial<RelayTimings>;
}

export interface RelayTimings extends DialTimings {
	/** How long a further shim connection waits for its own connection to the VM. */
	readonly furtherDialMs: number;
}

const defaultTimings: RelayTimings = {...defaultDialTimings, furtherDialMs: 20_000};

/** The VM's network stack tells a dead host from a silent pod; ttrpc has no ping of its own. */
const keepAliveMs = 30_000;

/** @throws 'invalid-argument' for TLS options that contradict each other */
export function createAgentRelays({identity, forwarderPort, tls = {}, log, timings}: AgentRelaysOptions): AgentRelays {
	const connection: ConnectionOptions = {
		secureContext: createSecureContext({
			...secureContextOptions(tls), ca: identity.serverCa, cert: identity.client.cert, key: identity.client.key.reveal(),
		}),
		...(tls.skipVerify === true ? {rejectUnauthorized: false, checkServerIdentity: () => undefined} : {rejectUnauthorized: true}),
	};
	if (tls.skipVerify === true) {
		log.warn({}, 'TLS_SKIP_VERIFY is set: whoever answers is taken for the VM');
	}

	const allTimings = {...defaultTimings, ...timings};
	return {
		async issue(instanceName, signal) {
			signal.throwIfAborted();
			return {...await identity.issue(instanceName), ...forwarderOptions(tls)};
		},
		async open(target, addresses, signal) {
			checkAgentSocketPath(target.socketPath);
			const relayLog = log.child({sandboxId: target.sandboxId, instanceName: target.instanceName});
			const dialTarget: DialTarget = {
				instanceName: target.instanceName, port: forwarderPort, serverName: identity.serverName(target.instanceName), tls: connection, timings: allTimings,
			};
			const startedAt = performance.now();
			const dialled = await dial(addresses, dialTarget, signal);
			relayLog.info({address: dialled.address, durationMs: Math.round(performance.now() - startedAt)}, 'forwarder of the VM reached');
			await using undo = new AsyncDisposableStack();
			const relay = undo.use(new Relay(dialled, dialTarget, relayLog, allTimings.furtherDialMs));
			await relay.listen(target);
			signal.throwIfAborted();
			undo.move();
			return relay;
		},
		discard: async socketPath => discardSocket(socketPath),
	};
}

class Relay implements AgentRelay {
	readonly address: string;
	readonly #target: DialTarget;
	readonly #log: Logger;
	readonly #furtherDialMs: number;
	/** Ends what still dials. */
	readonly #scope = new Scope();
	readonly #parts = new AsyncDisposableStack();
	/** Connections of shims, from accepted to closed. */
	readonly #serving = new Set<Promise<void>>();
	/** The connection that proved the VM, kept for the first shim. */
	#warm: WarmConnection | undefined;
	#connections = 0;
	#disposed: Promise<void> | undefined;

	constructor({address, socket}: Dialled, target: DialTarget, log: Logger, furtherDialMs: number) {
		this.address = address;
		this.#target = target;
		this.#log = log;
		this.#furtherDialMs = furtherDialMs;
		this.#warm = new WarmConnection(tuned(socket), log);
	}

	async listen({socketPath}: RelayTarget): Promise<void> {
		this.#parts.use(await listenForShims(socketPath, shim => this.#accept(shim)));
	}

	#accept(socket: Socket): void {
		const serving = this.#serve(new ShimLeg(socket)).finally(() => this.#serving.delete(serving));
		this.#serving.add(serving);
	}

	/** Never rejects. */
	async #serve(shim: ShimLeg): Promise<void> {
		const log = this.#log.child({connection: ++this.#connections});
		try {
			await using shimLeg = shim;
			await using vmLeg = new VmLeg(await this.#connectVm());
			if (this.#scope.signal.aborted) {
				return;
			}

			log.debug({}, 'shim connected');
			await using conversation = new Conversation(shimLeg, vmLeg, {log, now: () => performance.now()});
			const onAbort = (): void => {
				void conversation[Symbol.asyncDispose]();
			};
			this.#scope.signal.addEventListener('abort', onAbort, {once: true});
			try {
				await conversation.ended;
			} finally {
				this.#scope.signal.removeEventListener('abort', onAbort);
			}
		} catch (error) {
			if (!this.#scope.signal.aborted) {
				log.warn({err: toError(error)}, 'no connection to the VM for this shim connection, which is closed');
			}
		}
	}

	async #connectVm(): Promise<TLSSocket> {
		const warm = this.#warm?.take();
		this.#warm = undefined;
		if (warm !== undefined) {
			return warm;
		}

		using scope = new Scope(this.#scope.signal).deadline(this.#furtherDialMs, 'a further connection to the VM');
		const {socket} = await dial(only(this.address), this.#target, scope.signal);
		return tuned(socket);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#disposed ??= this.#dispose();
		return this.#disposed;
	}

	async #dispose(): Promise<void> {
		this.#scope.abort(new Error('the relay is closed'));
		this.#warm?.take()?.destroy();
		await Promise.all([this.#parts.disposeAsync(), ...this.#serving]);
		// One that was accepted while the listener closed found the scope aborted.
		await Promise.all(this.#serving);
	}
}

/** A connection that nobody reads from yet. Closed by the other side before it is needed, it is forgotten, and says so once. */
class WarmConnection {
	readonly #socket: TLSSocket;
	readonly #log: Logger;
	#error: Error | undefined;
	#lost = false;

	constructor(socket: TLSSocket, log: Logger) {
		this.#socket = socket;
		this.#log = log;
		socket.on('error', this.#onError);
		socket.once('close', this.#onClose);
		// An end is noticed by looking for something to read; bytes (no ttrpc server speaks first) are left for the shim.
		socket.on('readable', this.#onReadable);
	}

	/** The connection, the caller's from now on; undefined when it is no more. */
	take(): TLSSocket | undefined {
		this.#socket.removeListener('readable', this.#onReadable);
		this.#socket.removeListener('close', this.#onClose);
		return this.#lost || this.#socket.destroyed ? undefined : this.#socket;
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
		this.#log.warn({...(this.#error === undefined ? {} : {err: this.#error})}, 'unused connection closed by the VM, another is made when needed');
	};
}

function tuned(socket: TLSSocket): TLSSocket {
	socket.setKeepAlive(true, keepAliveMs);
	return socket;
}

async function* only(address: string): AsyncGenerator<string> {
	yield address;
}

/**
 * One connection to a libvirt daemon, shared by many calls: serials, order, the limit of calls in flight, keepalive,
 * loss. Does not know the meaning of procedures. Never reconnects: the session does that with a new connection.
 *
 * An exchange waits for a slot ─▶ CALL sent, holds the slot ─▶ REPLY, slot free ─▶ (streams: STREAM packets) ─▶ over.
 * If its caller gives up, the exchange keeps its slot until the REPLY arrives, because the daemon still counts the
 * call.
 */
import {Semaphore} from '../core/concurrency/semaphore.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import {present} from '../core/present.ts';
import {LibvirtConnectionError, LibvirtError, remoteError} from './wire/errors.ts';
import {
	encodePacket,
	keepaliveProgram,
	messageStatus,
	messageType,
	PacketDecoder,
	PacketError,
	remoteProgram,
	type MessageStatus,
	type Packet,
} from './wire/packet.ts';
import type {Pipe} from './transport/pipe.ts';
import type {Procedure} from './wire/procedures.ts';
import {Keepalive} from './keepalive.ts';
import {decode, encode} from './wire/xdr.ts';

/**
 * At its `max_client_requests` (5 by default, libvirtd.conf) the daemon stops reading. Then it does not read our
 * answers to its pings either, and disconnects. Stream packets that it has not yet written to disk count as well, but
 * the daemon processes those by itself.
 */
const callsInFlight = 4;
/** How many completed streams are remembered. */
const confirmationsKept = 64;
/** virkeepalive.c: procedures of the keepalive program. */
const ping = 1;
const pong = 2;
/**
 * How often the calls in flight are checked for abandoned ones, and after how many checks in a row the connection is
 * useless.
 */
const abandonedChecks = {partOfLimit: 20, atMost: 10};

export interface RpcOptions {
	/** Called exactly once, also after `close`. */
	readonly onLost: (reason: AdaptorError) => void;
	/** A message without a call. An error of this callback ends the connection. */
	readonly onMessage: (packet: Packet) => void;
	readonly onIgnored: (packet: Packet) => void;
}

/** Receives the answers to one CALL. */
export interface ExchangeHandler {
	/** @returns whether the exchange is over after this packet */
	receive(packet: Packet): boolean;
	/** The connection is lost. */
	fail(reason: LibvirtConnectionError): void;
}

/** A CALL that was sent. */
export interface Exchange {
	/** Sends a STREAM packet of this exchange, or a HOLE packet of a sparse stream. */
	send(status: MessageStatus, body: Uint8Array, type?: typeof messageType.stream | typeof messageType.hole): void;
	/** The caller no longer waits; packets still go to the handler. */
	abandon(): void;
}

interface Pending extends ExchangeHandler {
	readonly procedure: string;
	/** Held until the first answer. */
	slot: Disposable | undefined;
	/** The number of checks since the caller gave up. */
	abandonedFor: number | undefined;
}

export class RpcConnection {
	readonly #pipe: Pipe;
	readonly #options: RpcOptions;
	readonly #decoder = new PacketDecoder();
	readonly #slots = new Semaphore(callsInFlight);
	readonly #pending = new Map<number, Pending>();
	/** Aborts when the connection is lost, with the reason. */
	readonly #life = new Scope();
	readonly #drained = new Set<(value: undefined) => void>();
	/** Serials of the latest streams whose end the daemon has confirmed. */
	readonly #confirmed: number[] = [];
	#serial = 0;
	#lost: AdaptorError | undefined;
	#retirement: AdaptorError | undefined;
	#keepalive: Keepalive | undefined;
	#checks: NodeJS.Timeout | undefined;

	constructor(pipe: Pipe, options: RpcOptions) {
		this.#pipe = pipe;
		this.#options = options;
		pipe.duplex
			.on('data', (chunk: Buffer) => this.#read(chunk))
			.on('drain', () => this.#onDrain())
			.on('end', () => this.close(disconnected('the daemon, or a proxy in front of it, closed the connection')))
			.on('error', (error: Error) =>
				this.close(error instanceof AdaptorError ? error : disconnected(error.message, error)),
			)
			.on('close', () => this.close(disconnected('the connection was closed')));
		if (pipe.duplex.destroyed) {
			this.close(disconnected('the connection was already closed'));
		}
	}

	/** The transport of the connection. */
	get transport(): string {
		return this.#pipe.description;
	}

	/** Why the connection is lost; undefined while it is open. */
	get lost(): AdaptorError | undefined {
		return this.#lost;
	}

	/**
	 * One call, one answer. Rejects with the reason of a signal; if the call was sent, the daemon still executes it.
	 * @param signal applies until the call is sent
	 * @param answerSignal applies after that
	 * @throws LibvirtError, LibvirtConnectionError, XdrError
	 */
	async call<Args, Result>(
		procedure: Procedure<Args, Result>,
		args: Args,
		signal: AbortSignal,
		answerSignal = signal,
	): Promise<Result> {
		const {promise, resolve, reject} = Promise.withResolvers<Packet>();
		const exchange = await this.begin(procedure, args, signal, {
			receive(packet) {
				resolve(packet);
				return true;
			},
			fail: reject,
		});
		try {
			return this.#result(procedure, await abortable(promise, answerSignal));
		} catch (error) {
			exchange.abandon(); // No effect after the answer.
			throw error;
		}
	}

	/**
	 * Waits for a slot and sends the CALL. The handler receives everything that the daemon sends for it, from the REPLY
	 * on.
	 */
	async begin<Args>(
		procedure: Procedure<Args, unknown>,
		args: Args,
		signal: AbortSignal,
		handler: ExchangeHandler,
	): Promise<Exchange> {
		const body = encode(procedure.args, args);
		const slot = await this.#slot(procedure.name, signal);
		const serial = this.#nextSerial();
		const pending: Pending = {
			procedure: procedure.name,
			slot,
			abandonedFor: undefined,
			receive: packet => handler.receive(packet),
			fail: reason => handler.fail(reason),
		};
		this.#pending.set(serial, pending);
		const send = (type: Packet['type'], status: MessageStatus, bytes: Uint8Array): void => {
			this.#write(
				encodePacket(
					{program: remoteProgram, version: 1, procedure: procedure.number, type, serial, status},
					bytes,
				),
			);
		};

		send(messageType.call, messageStatus.ok, body);
		return {
			send: (status, bytes, type = messageType.stream) => send(type, status, bytes),
			abandon: () => {
				pending.abandonedFor ??= 0;
			},
		};
	}

	/** Resolves when the pipe accepts more bytes. */
	async drained(signal: AbortSignal): Promise<void> {
		if (!this.#pipe.duplex.writableNeedDrain || this.#lost !== undefined) {
			return;
		}

		const {promise, resolve} = Promise.withResolvers<undefined>();
		this.#drained.add(resolve);
		try {
			await abortable(promise, signal);
		} finally {
			this.#drained.delete(resolve);
		}
	}

	/**
	 * Stops reading: nothing on this connection is received until `resume`. Only for connections with a single stream.
	 */
	pause(): void {
		this.#pipe.duplex.pause();
	}

	resume(): void {
		this.#pipe.duplex.resume();
	}

	/**
	 * Starts to check whether the peer is silent and whether abandoned calls block slots.
	 * @param keepalive whether the daemon answers pings; if not, silence is ignored
	 * @param silenceTimeoutMs without any byte for this time, the connection is lost
	 * @param onSuspicion a ping was not answered soon; the signal aborts when something arrives, or when the connection
	 * is lost
	 */
	watch(keepalive: boolean, silenceTimeoutMs: number, onSuspicion: (heard: AbortSignal) => void): void {
		this.#checks = setInterval(() => this.#countAbandoned(), silenceTimeoutMs / abandonedChecks.partOfLimit);
		if (keepalive) {
			this.#keepalive = new Keepalive({
				limitMs: silenceTimeoutMs,
				ping: () => this.#write(keepalivePacket(ping)),
				onSuspicion,
				onLimit: () =>
					this.close(
						disconnected(
							`nothing arrived from the daemon for ${silenceTimeoutMs} ms, not even an answer to a ping`,
						),
					),
			});
		}
	}

	/** Closes at once; pending calls fail with the first reason given. Idempotent. */
	close(reason: AdaptorError): void {
		if (this.#lost !== undefined) {
			return;
		}

		this.#lost = reason;
		clearInterval(this.#checks);
		this.#keepalive?.stop();
		if (this.#pending.size > 0) {
			this.#pipe.cut();
		} else {
			this.#pipe.close();
		}

		this.#life.abort(reason);
		this.#onDrain();
		const pending = [...this.#pending.values()];
		this.#pending.clear();
		for (const exchange of pending) {
			exchange.fail(new LibvirtConnectionError(exchange.procedure, true, this.transport, reason));
		}

		this.#options.onLost(reason);
	}

	/**
	 * Another connection has replaced this one: closes it at once, or after the last stream. While a stream fills a
	 * disk, the daemon may read nothing else for a while, so silence is no reason to end the stream.
	 */
	retire(reason: AdaptorError): void {
		this.#retirement = reason;
		this.#closeWhenRetired();
	}

	#closeWhenRetired(): void {
		if (this.#retirement !== undefined && [...this.#pending.values()].every(({slot}) => slot !== undefined)) {
			this.close(this.#retirement);
		}
	}

	async #slot(procedure: string, signal: AbortSignal): Promise<Disposable> {
		using scope = new Scope(signal, this.#life.signal);
		const [acquired] = await Promise.allSettled([this.#slots.acquire(scope.signal)]);
		if (this.#lost !== undefined) {
			throw new LibvirtConnectionError(procedure, false, this.transport, this.#lost);
		}

		if (acquired.status === 'rejected') {
			throw acquired.reason;
		}

		return acquired.value;
	}

	#result<Args, Result>(procedure: Procedure<Args, Result>, packet: Packet): Result {
		if (packet.status === messageStatus.error) {
			throw new LibvirtError(decode(remoteError, packet.body), procedure.name);
		}

		return decode(procedure.result, packet.body);
	}

	#nextSerial(): number {
		do {
			this.#serial = (this.#serial % 0xff_ff_ff_ff) + 1;
		} while (this.#pending.has(this.#serial));

		return this.#serial;
	}

	#write(bytes: Buffer): void {
		if (this.#lost === undefined) {
			this.#pipe.duplex.write(bytes);
		}
	}

	#read(chunk: Buffer): void {
		this.#keepalive?.heard();
		try {
			for (const packet of this.#decoder.push(chunk)) {
				this.#dispatch(packet);
				if (this.#lost !== undefined) {
					return;
				}
			}
		} catch (error) {
			this.close(
				error instanceof AdaptorError
					? error
					: new AdaptorError({
							code: 'internal',
							what: 'Could not process a message of libvirt',
							cause: toError(error),
						}),
			);
		}
	}

	#dispatch(packet: Packet): void {
		if (packet.program === keepaliveProgram) {
			if (packet.procedure === ping) {
				this.#write(keepalivePacket(pong));
			}

			return;
		}

		if (packet.program !== remoteProgram || packet.version !== 1 || packet.type === messageType.call) {
			throw new PacketError(
				`a packet has program ${packet.program.toString(16)}, version ${packet.version}, type ${packet.type}`,
			);
		}

		if (packet.type === messageType.message) {
			this.#options.onMessage(packet);
			return;
		}

		const exchange = this.#pending.get(packet.serial);
		const confirms = packet.type === messageType.stream && packet.status === messageStatus.ok;
		if (exchange === undefined) {
			if (confirms && this.#confirmed.includes(packet.serial)) {
				// Bug of libvirtd (seen with 9.0.0, rarely, when streams and calls share a connection): it sends this
				// message a second time in place of the answer to another call. That answer is lost.
				throw new AdaptorError({
					code: 'unavailable',
					what: 'the daemon confirmed the end of a stream twice, so the answer to another call is lost (bug of libvirtd)',
				});
			}

			// Usually the rest of a stream that this side has ended.
			this.#options.onIgnored(packet);
			return;
		}

		exchange.slot?.[Symbol.dispose]();
		exchange.slot = undefined;

		if (exchange.receive(packet)) {
			this.#pending.delete(packet.serial);
			if (confirms) {
				this.#confirmed.push(packet.serial);
				this.#confirmed.splice(0, this.#confirmed.length - confirmationsKept);
			}

			this.#closeWhenRetired();
		}
	}

	/**
	 * If abandoned calls hold all slots and other calls wait, the connection is useless: the abandoned calls may hang
	 * in the daemon for hours. The daemon counts the calls of a new connection separately.
	 */
	#countAbandoned(): void {
		const holders = [...this.#pending.values()].filter(({slot}) => slot !== undefined);
		for (const holder of holders) {
			if (holder.abandonedFor !== undefined) {
				holder.abandonedFor++;
			}
		}

		if (this.#slots.waiting > 0 && holders.every(({abandonedFor = 0}) => abandonedFor >= abandonedChecks.atMost)) {
			const procedures = holders.map(({procedure}) => procedure).join(', ');
			this.close(
				new AdaptorError({
					code: 'unavailable',
					what: `the daemon answers none of the ${holders.length} calls in flight, whose callers have given up (${procedures})`,
					remedy: 'A libvirt job hangs on the KVM host: check its log and "virsh domjobinfo".',
				}),
			);
		}
	}

	#onDrain(): void {
		for (const resolve of this.#drained) {
			resolve(undefined);
		}
	}
}

function keepalivePacket(procedure: number): Buffer {
	return encodePacket(
		{
			program: keepaliveProgram,
			version: 1,
			procedure,
			type: messageType.message,
			serial: 0,
			status: messageStatus.ok,
		},
		Buffer.alloc(0),
	);
}

function disconnected(what: string, cause?: Error): AdaptorError {
	return new AdaptorError({code: 'unavailable', what, ...present({cause})});
}

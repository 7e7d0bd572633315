/**
 * Transfers the bytes of volumes and the output of consoles over an RPC connection, with back-pressure in both
 * directions. Source: libvirt, src/rpc/virnetprotocol.x and src/remote/remote_daemon_stream.c. After the CALL, both
 * sides send STREAM packets with the serial of the CALL: CONTINUE with data, CONTINUE without data at the end of a
 * download, then OK from us, OK back. A sparse stream also has HOLE packets: a number of zeros that take no space in
 * the volume and on the wire. ERROR without a body aborts (from us); with a body it contains the reason (from the
 * daemon). The daemon does not acknowledge data: only a full pipe slows the sender, and it blocks everything else on
 * that connection.
 */
import {toError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import {LibvirtError, remoteError} from './wire/errors.ts';
import {messageStatus, messageType, PacketError, streamPayload, type Packet} from './wire/packet.ts';
import {procedures, type Domain, type Procedure, type StorageVol} from './wire/procedures.ts';
import type {Exchange, ExchangeHandler, RpcConnection} from './rpc.ts';
import {decode, encode, i64, struct, u32} from './wire/xdr.ts';

/** How long to wait for the daemon to confirm an aborted stream. */
const abortTimeoutMs = 2000;
/** Unread bytes of a download at which the connection stops reading, and at which it resumes. */
const backlogLimit = 2 * 1024 * 1024;
const backlogResume = 512 * 1024;
const empty = Buffer.alloc(0);
/** VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM and VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM (since libvirt 3.4.0). */
const sparseStream = 1;
/** virNetStreamHole: a length in bytes, and flags; none are defined. */
const hole = struct({length: i64, flags: u32});
/** Zeros are detected in blocks of this size: smaller holes save nothing in file systems and QEMU. */
const zeros = Buffer.alloc(65_536);

/** Bytes; `length` 0 means up to the end. */
export interface VolumeRange {
	readonly vol: StorageVol;
	readonly offset: bigint;
	readonly length: bigint;
	/**
	 * Zeros become holes. For an upload, the volume must already have holes at these places. So use this only for new
	 * volumes, and for ranges up to the end.
	 */
	readonly isSparse: boolean;
}

/**
 * Writes the source into the volume; resolves when the daemon has confirmed all of it.
 * @param stallMs how long to wait for the daemon without progress
 * @throws LibvirtError, also after a part was written; that part stays, and the source is not read to its end
 */
export async function uploadVolume(
	connection: RpcConnection,
	{isSparse, ...range}: VolumeRange,
	source: AsyncIterable<Uint8Array>,
	stallMs: number,
	signal: AbortSignal,
): Promise<void> {
	const stream = await DataStream.open(
		connection,
		procedures.storageVolUpload,
		{...range, flags: isSparse ? sparseStream : 0},
		stallMs,
		signal,
	);
	const chunks = source[Symbol.asyncIterator]();
	try {
		using scope = new Scope(signal, stream.failed);
		let skipped = 0;
		for (;;) {
			const next = await abortable(chunks.next(), scope.signal);
			if (next.done === true) {
				break;
			}

			for (const part of isSparse ? withoutZeros(next.value) : [next.value]) {
				if (typeof part === 'number') {
					skipped += part;
					continue;
				}

				await stream.skip(skipped, scope.signal);
				skipped = 0;
				for (let offset = 0; offset < part.length; offset += streamPayload) {
					await stream.write(part.subarray(offset, offset + streamPayload), scope.signal);
				}
			}
		}

		await stream.skip(skipped, scope.signal);
		await stream.finish(scope.signal);
	} catch (error) {
		// Not awaited: if a source hangs in next(), it also hangs in return().
		Promise.resolve(chunks.return?.()).catch(() => undefined);
		await stream.abort();
		throw error;
	}
}

/**
 * Reads the bytes of the volume. The connection must carry nothing else, because a slow reader stops it. Returning
 * early aborts the stream.
 */
export async function* downloadVolume(
	connection: RpcConnection,
	{isSparse, ...range}: VolumeRange,
	stallMs: number,
	signal: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
	const stream = await DataStream.open(
		connection,
		procedures.storageVolDownload,
		{...range, flags: isSparse ? sparseStream : 0},
		stallMs,
		signal,
	);
	try {
		using scope = new Scope(signal, stream.failed);
		for (;;) {
			const data = await stream.read(scope.signal);
			if (data === undefined) {
				await stream.finish(scope.signal);
				return;
			}

			if (typeof data === 'bigint') {
				yield* zeroBytes(data);
				continue;
			}

			yield data;
		}
	} finally {
		await stream.abort();
	}
}

/**
 * The output of the guest on its first console from now on, until its VM ends. The consumer must be fast, because the
 * connection is shared. Returning early releases the console.
 */
export async function* consoleOutput(
	connection: RpcConnection,
	dom: Domain,
	signal: AbortSignal,
): AsyncGenerator<Buffer, void, undefined> {
	// Without VIR_DOMAIN_CONSOLE_FORCE, so that another client keeps an open console. No time-out for data: a guest may
	// be silent for any time.
	const stream = await DataStream.open(
		connection,
		procedures.domainOpenConsole,
		{dom, devName: null, flags: 0},
		Infinity,
		signal,
	);
	try {
		using scope = new Scope(signal, stream.failed);
		for (let data = await stream.read(scope.signal); data !== undefined; data = await stream.read(scope.signal)) {
			// Only sparse streams have holes.
			if (typeof data !== 'bigint') {
				yield data;
			}
		}
	} finally {
		await stream.abort();
	}
}

/** The source of an upload that is completely in memory. */
export async function* inOnePiece(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
	yield bytes;
}

/** Splits a chunk, in order, into bytes to write and numbers of zeros to skip. */
function* withoutZeros(chunk: Uint8Array): Generator<Uint8Array | number> {
	let from = 0;
	for (let at = 0; at < chunk.length; at += zeros.length) {
		const piece = chunk.subarray(at, at + zeros.length);
		if (zeros.subarray(0, piece.length).equals(piece)) {
			if (at > from) {
				yield chunk.subarray(from, at);
			}

			yield piece.length;
			from = at + piece.length;
		}
	}

	if (from < chunk.length) {
		yield chunk.subarray(from);
	}
}

function* zeroBytes(length: bigint): Generator<Buffer> {
	for (let left = length; left > 0n; left -= BigInt(streamPayload)) {
		yield Buffer.alloc(left < BigInt(streamPayload) ? Number(left) : streamPayload);
	}
}

/** One stream after its REPLY. */
class DataStream {
	readonly #connection: RpcConnection;
	readonly #exchange: Exchange;
	readonly #inbox: Inbox;
	readonly #stallMs: number;

	/** Sends the CALL and waits for its REPLY. */
	static async open<Args>(
		connection: RpcConnection,
		procedure: Procedure<Args, undefined>,
		args: Args,
		stallMs: number,
		signal: AbortSignal,
	): Promise<DataStream> {
		const inbox = new Inbox(procedure.name, connection);
		const exchange = await connection.begin(procedure, args, signal, inbox);
		try {
			using scope = new Scope(signal, inbox.failed).deadline(stallMs, 'libvirt to open a stream');
			await abortable(inbox.replied, scope.signal);
			return new DataStream(connection, exchange, inbox, stallMs);
		} catch (error) {
			exchange.abandon();
			inbox.discard();
			void inbox.replied.then(() => exchange.send(messageStatus.error, empty));
			throw error;
		}
	}

	private constructor(connection: RpcConnection, exchange: Exchange, inbox: Inbox, stallMs: number) {
		this.#connection = connection;
		this.#exchange = exchange;
		this.#inbox = inbox;
		this.#stallMs = stallMs;
	}

	/** Aborts with the LibvirtError or LibvirtConnectionError that ended the stream. */
	get failed(): AbortSignal {
		return this.#inbox.failed;
	}

	/** Sends a chunk, then waits until the pipe accepts more. */
	async write(chunk: Uint8Array, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		this.#exchange.send(messageStatus.continue, chunk);
		await this.#waitFor(scope => this.#connection.drained(scope), 'libvirt to take the data of an upload', signal);
	}

	/** Sends a hole of this length, if it is not 0, then waits as `write` does. */
	async skip(length: number, signal: AbortSignal): Promise<void> {
		if (length > 0) {
			signal.throwIfAborted();
			this.#exchange.send(
				messageStatus.continue,
				encode(hole, {length: BigInt(length), flags: 0}),
				messageType.hole,
			);
			await this.#waitFor(
				scope => this.#connection.drained(scope),
				'libvirt to take the data of an upload',
				signal,
			);
		}
	}

	/** The next data, or a number of zeros; undefined at the end. */
	async read(signal: AbortSignal): Promise<Buffer | bigint | undefined> {
		return this.#waitFor(scope => this.#inbox.take(scope), 'libvirt to send the data of a download', signal);
	}

	/** Confirms the end of the stream, and waits for the confirmation of the daemon. */
	async finish(signal: AbortSignal): Promise<void> {
		if (!this.#inbox.isOver) {
			this.#exchange.send(messageStatus.ok, empty);
		}

		await this.#waitFor(
			scope => abortable(this.#inbox.over, scope),
			'libvirt to confirm the end of a stream',
			signal,
		);
	}

	/** Ends the stream if it is not over, and waits a limited time for that. Never throws. */
	async abort(): Promise<void> {
		if (this.#inbox.isOver) {
			return;
		}

		this.#inbox.discard();
		this.#exchange.send(messageStatus.error, empty);
		using scope = new Scope(this.#inbox.failed).deadline(
			abortTimeoutMs,
			'libvirt to confirm that a stream was aborted',
		);
		await abortable(this.#inbox.over, scope.signal).catch(() => undefined);
	}

	async #waitFor<T>(wait: (signal: AbortSignal) => Promise<T>, awaited: string, signal: AbortSignal): Promise<T> {
		using scope = new Scope(signal).deadline(this.#stallMs, awaited);
		return await wait(scope.signal);
	}
}

/**
 * Receives the packets of one stream. Data may arrive before the REPLY: libvirtd starts to send from one thread while
 * another still writes the REPLY (remoteDispatchStorageVolDownload adds the stream first; seen with 9.0.0 under load).
 */
class Inbox implements ExchangeHandler {
	readonly #procedure: string;
	readonly #connection: RpcConnection;
	readonly #failure = new Scope();
	readonly #replied = Promise.withResolvers<undefined>();
	readonly #over = Promise.withResolvers<undefined>();
	/** Data, and lengths of holes. */
	readonly #backlog: Array<Buffer | bigint> = [];
	#backlogBytes = 0;
	#state: 'open' | 'ended' | 'over' = 'open';
	#hasReply = false;
	#discards = false;
	/** Set while a reader waits. */
	#wake: ((value: undefined) => void) | undefined;

	constructor(procedure: string, connection: RpcConnection) {
		this.#procedure = procedure;
		this.#connection = connection;
	}

	/** Aborts with the error of the stream; does not abort if the stream ended well. */
	get failed(): AbortSignal {
		return this.#failure.signal;
	}

	/** Resolves after a successful REPLY; never rejects. */
	get replied(): Promise<undefined> {
		return this.#replied.promise;
	}

	/** Resolves when the daemon has confirmed the end; never rejects. */
	get over(): Promise<undefined> {
		return this.#over.promise;
	}

	/** No more packets will arrive, and none may be sent. */
	get isOver(): boolean {
		return this.#state === 'over';
	}

	receive(packet: Packet): boolean {
		if (packet.status === messageStatus.error) {
			this.fail(this.#refusal(packet));
		} else if (packet.type === messageType.reply) {
			this.#hasReply = true;
			this.#replied.resolve(undefined);
		} else if (packet.status === messageStatus.ok) {
			if (!this.#hasReply) {
				throw new PacketError(`a stream was over before the reply to ${this.#procedure}`);
			}

			this.#state = 'over';
			this.#over.resolve(undefined);
		} else if (packet.type === messageType.hole) {
			this.#backlog.push(...(this.#discards ? [] : [decode(hole, packet.body).length]));
		} else if (packet.body.length === 0) {
			this.#state = 'ended';
		} else if (!this.#discards) {
			this.#backlog.push(packet.body);
			this.#backlogBytes += packet.body.length;
			// The REPLY may still be on its way; reading must continue until then.
			if (this.#hasReply && this.#backlogBytes > backlogLimit) {
				this.#connection.pause();
			}
		}

		this.#wake?.(undefined);
		return this.isOver;
	}

	fail(reason: Error): void {
		this.#state = 'over';
		this.#failure.abort(reason);
	}

	/** The next data, or a number of zeros; undefined at the end. */
	async take(signal: AbortSignal): Promise<Buffer | bigint | undefined> {
		if (this.#backlog.length === 0 && this.#state === 'open') {
			const {promise, resolve} = Promise.withResolvers<undefined>();
			this.#wake = resolve;
			await abortable(promise, signal);
		}

		signal.throwIfAborted();
		const data = this.#backlog.shift();
		this.#backlogBytes -= typeof data === 'bigint' ? 0 : (data?.length ?? 0);
		if (this.#backlogBytes <= backlogResume) {
			this.#connection.resume();
		}

		return data;
	}

	/** Ignores all further data. */
	discard(): void {
		this.#discards = true;
		this.#backlog.length = 0;
		this.#connection.resume();
	}

	#refusal(packet: Packet): Error {
		try {
			return new LibvirtError(decode(remoteError, packet.body), this.#procedure);
		} catch (error) {
			return toError(error);
		}
	}
}

/**
 * A libvirt connection that lasts: made by the first call, made again with back-off whenever it is lost, until disposed.
 * Knows what a connection's life needs (authentication, opening the driver, events); knows nothing of how bytes travel
 * (pipe.ts) or of how calls share one connection (rpc.ts).
 */
import type {LifecycleEvent} from './events.ts';
import type {OpenPipe} from './pipe.ts';
import type {Procedure, StorageVol} from './procedures.ts';

/** Where a session writes what it does; any pino-like logger fits. */
export interface SessionLog {
	debug(fields: SessionLogFields, message: string): void;
	info(fields: SessionLogFields, message: string): void;
	warn(fields: SessionLogFields, message: string): void;
}

export interface SessionLogFields {
	readonly attempt?: number;
	readonly connection?: number;
	readonly durationMs?: number;
	readonly err?: unknown;
	readonly host?: string;
	readonly libvirtVersion?: string;
	readonly method?: string;
	readonly reason?: string;
	readonly retryInMs?: number;
	readonly transport?: string;
	readonly uri?: string;
}

export interface LibvirtSessionOptions {
	readonly openPipe: OpenPipe;
	/** The driver's URI as the daemon sees it: `qemu:///system`, `test:///default`. */
	readonly uri: string;
	readonly log?: SessionLog;
	/** How long a call may take when it does not say itself, waiting for its turn and for a connection included. */
	readonly callTimeoutMs?: number;
	/** How long one attempt to connect may take, from opening the pipe to the last answer of the handshake. */
	readonly connectTimeoutMs?: number;
	/** A connection on which nothing arrives for so long is lost. The daemon pings every 5 s by default. */
	readonly silenceTimeoutMs?: number;
	/** How long a stream may wait for the daemon without any progress. */
	readonly streamTimeoutMs?: number;
	/** The first and the longest pause between attempts to connect. */
	readonly reconnectMs?: {readonly first: number; readonly longest: number};
}

/** What answered at the other end. */
export interface ServerInfo {
	/** The driver: `QEMU`, `TEST`. */
	readonly driver: string;
	/** Of the daemon, e.g. `9.0.0`. */
	readonly libvirtVersion: string;
	readonly hostname: string;
	/** How the daemon was reached: the pipe's description. */
	readonly transport: string;
}

export type SessionState =
	/** Nothing was asked yet, or a first attempt failed and nobody waits. */
	| {readonly name: 'idle'}
	/** `lost`: why the connection before this one ended, when there was one. */
	| {readonly name: 'connecting'; readonly lost?: Error}
	/** Events are flowing. Whatever happened while the state was another one went unseen. */
	| {readonly name: 'connected'; readonly server: ServerInfo}
	| {readonly name: 'closed'};

export interface CallOptions {
	readonly timeoutMs?: number;
}

export interface StreamRange {
	/** Bytes from the volume's start. */
	readonly offset?: bigint | number;
	/** Bytes; 0 or absent is all that comes (upload: up to the end of the source; download: up to the volume's end). */
	readonly length?: bigint | number;
}

export declare class LibvirtSession implements AsyncDisposable {
	constructor(options: LibvirtSessionOptions);
	get state(): SessionState;
	/** Of the present connection, or of the last one; undefined before the first. */
	get serverInfo(): ServerInfo | undefined;
	/** Connects if it is not connected. */
	connect(signal: AbortSignal): Promise<ServerInfo>;
	/**
	 * @throws LibvirtError what the daemon answered; LibvirtConnectionError ('unavailable') when the connection was lost or could not be made;
	 * DeadlineError after `timeoutMs`; the signal's reason. In the latter two cases the call may still be carried out.
	 */
	call<Args, Result>(procedure: Procedure<Args, Result>, args: Args, signal: AbortSignal, options?: CallOptions): Promise<Result>;
	/** Writes the source's bytes into the volume. Resolves once the daemon has them all. */
	upload(vol: StorageVol, source: AsyncIterable<Uint8Array>, range: StreamRange, signal: AbortSignal): Promise<void>;
	/** The volume's bytes, read no faster than they are taken. Returning early ends the stream. */
	download(vol: StorageVol, range: StreamRange, signal: AbortSignal): AsyncGenerator<Buffer, void, undefined>;
	/** Every domain's lifecycle events while connected. Does not connect by itself; a call does. */
	onLifecycle(listener: (event: LifecycleEvent) => void): Disposable;
	onState(listener: (state: SessionState) => void): Disposable;
	[Symbol.asyncDispose](): Promise<void>;
}

/** The options of a libvirt session with their defaults, and its states. */
import {noObserver, type Observer} from '../core/observer.ts';
import type {ServerInfo, SessionEvent} from './session-events.ts';
import type {OpenPipe} from './transport/pipe.ts';

export interface LibvirtSessionOptions {
	readonly openPipe: OpenPipe;
	/** The URI of the driver from the daemon's view: `qemu:///system`, `test:///default`. */
	readonly uri: string;
	readonly observer?: Observer<SessionEvent>;
	/** Default time-out of a call, including the wait for a slot and for a connection. */
	readonly callTimeoutMs?: number;
	/** Time-out of one connection attempt, from opening the pipe to the last answer of the handshake. */
	readonly connectTimeoutMs?: number;
	/**
	 * A connection on which nothing arrives for this time is lost. After a twentieth of it without a byte, a ping is
	 * sent. After another twentieth, a new connection is tried, which replaces the silent one if it succeeds first.
	 */
	readonly silenceTimeoutMs?: number;
	/** How long a stream may wait for the daemon without progress. */
	readonly streamTimeoutMs?: number;
	/** How long disposal waits for running calls and uploads. Short, because their callers had time to wait before. */
	readonly drainTimeoutMs?: number;
	/** The first and the longest pause between connection attempts. */
	readonly reconnectMs?: {readonly first: number; readonly longest: number};
}

export type SessionState =
	/** No call was made yet. */
	| {readonly name: 'idle'}
	/** `lost`: why the previous connection ended, if there was one. */
	| {readonly name: 'connecting'; readonly lost?: Error}
	/** Events are received. Events during the other states were missed. */
	| {readonly name: 'connected'; readonly server: ServerInfo}
	| {readonly name: 'closed'};

export interface CallOptions {
	readonly timeoutMs?: number;
	/** Whether to repeat the call if its answer was lost with the connection. Default: the procedure's `idempotent`. */
	readonly retry?: boolean;
	/** The signal only applies until the call is sent; then the call waits for its outcome. Default: false. */
	readonly seeThrough?: boolean;
}

export interface StreamRange {
	/** Offset in the volume in bytes. */
	readonly offset?: bigint | number;
	/** Bytes. 0 or absent: everything (upload: to the end of the source; download: to the end of the volume). */
	readonly length?: bigint | number;
	/**
	 * Zeros are neither sent nor stored. For an upload, the volume must already contain zeros there, and the range must
	 * reach to its end, because libvirt truncates the file after each hole. Default: false.
	 */
	readonly isSparse?: boolean;
}

export const sessionDefaults = {
	observer: noObserver,
	callTimeoutMs: 30_000,
	connectTimeoutMs: 10_000,
	silenceTimeoutMs: 20_000,
	streamTimeoutMs: 120_000,
	drainTimeoutMs: 2000,
	// The longest pause plus a handshake must be less than 2 s, so that a recovered host is used again within 2 s.
	reconnectMs: {first: 100, longest: 1000},
} satisfies Omit<LibvirtSessionOptions, 'openPipe' | 'uri'>;

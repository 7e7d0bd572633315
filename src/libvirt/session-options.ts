/** What a libvirt session is told and what it tells: options with their defaults, states, who answered. */
import {noObserver, type Observer} from '../core/observer.ts';
import type {ServerInfo, SessionEvent} from './session-events.ts';
import type {OpenPipe} from './transport/pipe.ts';

export interface LibvirtSessionOptions {
	readonly openPipe: OpenPipe;
	/** The driver's URI as the daemon sees it: `qemu:///system`, `test:///default`. */
	readonly uri: string;
	readonly observer?: Observer<SessionEvent>;
	/** How long a call may take when it does not say itself, waiting for its turn and for a connection included. */
	readonly callTimeoutMs?: number;
	/** How long one attempt to connect may take, from opening the pipe to the last answer of the handshake. */
	readonly connectTimeoutMs?: number;
	/**
	 * A connection on which nothing arrives for so long is lost. A twentieth of it without a byte: we ping. Another
	 * one: a new connection is tried, which takes the place of the silent one if it gets through first.
	 */
	readonly silenceTimeoutMs?: number;
	/** How long a stream may wait for the daemon without any progress. */
	readonly streamTimeoutMs?: number;
	/**
	 * How long disposing waits for calls and uploads that are under way: not long, those who made them have had their
	 * time.
	 */
	readonly drainTimeoutMs?: number;
	/** The first and the longest pause between attempts to connect. */
	readonly reconnectMs?: {readonly first: number; readonly longest: number};
}

export type SessionState =
	/** Nothing was asked yet. */
	| {readonly name: 'idle'}
	/** `lost`: why the connection before this one ended, when there was one. */
	| {readonly name: 'connecting'; readonly lost?: Error}
	/** Events are flowing. Whatever happened while the state was another one went unseen. */
	| {readonly name: 'connected'; readonly server: ServerInfo}
	| {readonly name: 'closed'};

export interface CallOptions {
	readonly timeoutMs?: number;
	/**
	 * Whether to call again when the answer was lost with the connection; unless told, what the procedure's
	 * `idempotent` says.
	 */
	readonly retry?: boolean;
	/** The signal is heeded only until the call is sent; from then on the outcome is waited for. False unless told. */
	readonly seeThrough?: boolean;
}

export interface StreamRange {
	/** Bytes from the volume's start. */
	readonly offset?: bigint | number;
	/** Bytes; 0 or absent is all that comes (upload: up to the end of the source; download: up to the volume's end). */
	readonly length?: bigint | number;
	/**
	 * Zeros are neither sent nor stored. Of an upload: the volume must have zeros there already, and the range must
	 * reach to its end, since libvirt cuts the file behind each hole. False unless told.
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
	// The longest pause plus a handshake stay under 2 s: that is how soon a host that came back is in use again.
	reconnectMs: {first: 100, longest: 1000},
} satisfies Omit<LibvirtSessionOptions, 'openPipe' | 'uri'>;

/**
 * The bytes between us and a libvirt daemon, however they travel. Interfaces only: the transports implement them,
 * the session uses them, neither knows the other.
 */
import type {Duplex} from 'node:stream';

/** One open byte stream to a libvirt daemon. */
export interface Pipe {
	/**
	 * Emits 'close' whenever the way to the daemon is gone, after an 'error' when the reason is known.
	 * Whoever reads it treats 'end', 'error' and 'close' alike: the connection is lost.
	 */
	readonly duplex: Duplex;
	/** For logs and errors, without secrets, e.g. `unix /run/libvirt/libvirt-sock`. */
	readonly description: string;
	/**
	 * Ends it at once and releases what carried it; the last that was written may still arrive. Idempotent; never
	 * throws.
	 */
	close(): void;
	/** As `close`, and what was written and has not arrived never will, as far as that can be had. */
	cut(): void;
}

/** Opens a new pipe, or rejects with the reason, or with the signal's once that aborts. Nothing is left open then. */
export type OpenPipe = (signal: AbortSignal) => Promise<Pipe>;

/**
 * A byte stream to a libvirt daemon over any transport. Interfaces only: the transports implement them, the session
 * uses them; neither knows the other.
 */
import type {Duplex} from 'node:stream';

/** One open byte stream to a libvirt daemon. */
export interface Pipe {
	/**
	 * Emits 'close' when the connection to the daemon is lost, after an 'error' if the reason is known. Readers treat
	 * 'end', 'error' and 'close' alike: the connection is lost.
	 */
	readonly duplex: Duplex;
	/** For logs and errors, without secrets, for example `unix /run/libvirt/libvirt-sock`. */
	readonly description: string;
	/**
	 * Closes the pipe at once and releases its resources. Data that was written may still arrive. Idempotent; never
	 * throws.
	 */
	close(): void;
	/** Like `close`, but also discards written data that has not arrived, as far as possible. */
	cut(): void;
}

/** Opens a new pipe. Rejects with the error, or with the reason of the signal; then nothing is left open. */
export type OpenPipe = (signal: AbortSignal) => Promise<Pipe>;

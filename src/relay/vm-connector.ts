/**
 * Opens connections to a VM. The VM must be verified before any of its data is used. Another transport (vsock) is
 * another implementation, chosen in relay.ts.
 */
import type {Duplex} from 'node:stream';

export interface Connected {
	/** Where the VM was found; identifies it in messages. */
	readonly address: string;
	/** Verified, half-open allowed, not read yet. Owned by the caller. */
	readonly socket: Duplex;
}

export interface VmConnector {
	/**
	 * Finds the VM among the addresses.
	 * @throws an error of `addresses`, at once; the reason of the signal; after a deadline, an error with the progress
	 */
	find(addresses: AsyncIterable<string>, signal: AbortSignal): Promise<Connected>;
	/** Connects again to a VM that was found. @throws as `find` */
	reconnect(address: string, signal: AbortSignal): Promise<Duplex>;
}

/** For a VM whose address is known. */
export async function* onlyAddress(address: string): AsyncGenerator<string> {
	yield address;
}

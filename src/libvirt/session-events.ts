/** Events of the connections of a session, for its observer. */

/** The libvirt daemon at the other end. */
export interface ServerInfo {
	/** The name of the driver: `QEMU`, `TEST`. */
	readonly driver: string;
	/** The version of the daemon, for example `9.0.0`. */
	readonly libvirtVersion: string;
	readonly hostname: string;
	/** The transport: the description of the pipe. */
	readonly transport: string;
}

/** `uri`: the URI of the driver, as in the options. `connection` counts the connections of the session, from 1. */
export type SessionEvent = {readonly uri: string} & (
	| {
			readonly kind: 'libvirt-connected';
			readonly connection: number;
			readonly durationMs: number;
			readonly server: ServerInfo;
	  }
	| {
			readonly kind: 'libvirt-connect-failed';
			readonly error: Error;
			/** Counts from 1 since the last success. */
			readonly attempt: number;
			readonly retryInMs: number;
	  }
	| {
			readonly kind: 'libvirt-lost';
			readonly error: Error;
			readonly connection: number;
			readonly transport: string;
	  }
	/** The old connection was silent, and a new one succeeded first. */
	| {readonly kind: 'libvirt-connection-replaced'; readonly transport: string}
	| {readonly kind: 'libvirt-replacement-failed'; readonly error: unknown}
	/**
	 * A call, or the upload or download of a volume, has ended: with repetitions, and the waits for a slot and for a
	 * connection. `error` is undefined if it succeeded.
	 */
	| {
			readonly kind: 'libvirt-call';
			readonly procedure: string;
			readonly durationMs: number;
			readonly error: unknown;
	  }
	/** The answer was lost with the connection. */
	| {readonly kind: 'libvirt-call-repeated'; readonly error: unknown}
	/** An answer to a call whose caller has given up. */
	| {readonly kind: 'libvirt-packet-ignored'; readonly serial: number; readonly procedure: number}
	| {readonly kind: 'libvirt-listener-failed'; readonly error: unknown}
);

/** What happens to a session's connections, as the session tells its observer. */

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

/** `uri`: the driver's, as in the options. `connection` counts the session's connections, from 1. */
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
	/** It was silent, and a new one got through first. */
	| {readonly kind: 'libvirt-connection-replaced'; readonly transport: string}
	| {readonly kind: 'libvirt-replacement-failed'; readonly error: unknown}
	/** Its answer was lost with the connection. */
	| {readonly kind: 'libvirt-call-repeated'; readonly error: unknown}
	/** An answer to a call that nobody waits for any more. */
	| {readonly kind: 'libvirt-packet-ignored'; readonly serial: number; readonly procedure: number}
	| {readonly kind: 'libvirt-listener-failed'; readonly error: unknown}
);

/** The events of the relay process for its observer, beside those of its relays. */

export type RelayProcessEvent =
	| {readonly kind: 'daemon-registered'; readonly path: string}
	| {readonly kind: 'daemon-gone'; readonly path: string; readonly hasOther: boolean}
	/** A call of a shim found no daemon, and waits for one. */
	| {readonly kind: 'call-waits'; readonly method: string}
	/** It was sent to a daemon in the end. */
	| {readonly kind: 'call-waited'; readonly method: string; readonly durationMs: number}
	/** The daemon ended during the call, which may be repeated. */
	| {readonly kind: 'call-repeated'; readonly method: string}
	/** The daemon ended during the call, which may not be repeated, or no daemon came in time. */
	| {readonly kind: 'call-lost'; readonly method: string; readonly error: Error};

/** The events of the relay process for its observer, beside those of its relays. */

export type RelayProcessEvent =
	| {readonly kind: 'daemon-registered'; readonly path: string}
	| {readonly kind: 'daemon-gone'; readonly path: string; readonly hasOther: boolean}
	/** A call of a shim found no daemon, and waits for one. */
	| {readonly kind: 'call-waits'; readonly method: string}
	/** The waiting call was sent to a daemon. */
	| {readonly kind: 'call-waited'; readonly method: string; readonly durationMs: number}
	/** The daemon ended during the call. The call is repeated, because that is safe. */
	| {readonly kind: 'call-repeated'; readonly method: string}
	/** The daemon ended during a call that must not be repeated, or no daemon registered in time. */
	| {readonly kind: 'call-lost'; readonly method: string; readonly error: Error};

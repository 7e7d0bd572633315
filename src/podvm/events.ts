/** Events of the storage pool for the observer. */

export type PoolEvent =
	/** In each interval. */
	| {readonly kind: 'pool-observed'; readonly capacityBytes: bigint; readonly availableBytes: bigint}
	/** The pool is not active, or libvirt did not answer. */
	| {readonly kind: 'pool-not-observed'};

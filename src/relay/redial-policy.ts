/** All pauses and time limits of the relay: when it dials a VM, dials it again, probes its liveness and gives it up. */

/** In milliseconds, except `maxPending`. */
export interface DialTimings {
	/**
	 * Pause after a refusal or a reset: the VM is up, and its forwarder will listen soon. This is the largest part of
	 * the delay of StartVM.
	 */
	readonly retryMs: number;
	/** The same pause, after an address was dialled for a minute. */
	readonly patientRetryMs: number;
	/** Starts a hedged attempt if the last one has no answer after this time. */
	readonly hedgeAfterMs: number;
	/** The same during a TLS handshake. It is longer, because more handshakes slow down a busy VM. */
	readonly hedgeHandshakeAfterMs: number;
	/** Pause after another host answers. The VM may get the address later. */
	readonly strangerMs: number;
	/** Time limit of a TCP connection. A VM on the subnet answers within milliseconds, or does not listen yet. */
	readonly connectTimeoutMs: number;
	/** Time limit of a TLS handshake. An emulated VM needs half a second, a busy one several. */
	readonly handshakeTimeoutMs: number;
	/**
	 * With TLS 1.3, the client completes the handshake before the server verifies its certificate. After the handshake,
	 * the client waits this time for a refusal. A session ticket means that the server accepted the certificate.
	 */
	readonly objectionMs: number;
	/** Maximum number of parallel attempts without an answer per address. */
	readonly maxPending: number;
}

export interface LivenessTimings {
	/**
	 * The probe starts after this time without data: long for a health check, but short against the timeout of the
	 * shim.
	 */
	readonly doubtMs: number;
	/** Time limit for an answer on the second connection, before another one is opened. */
	readonly answerMs: number;
	/**
	 * After an answer on the second connection, the first one gets this time: a VM that wakes up answers on both.
	 */
	readonly graceMs: number;
	/**
	 * A replaced connection is kept for late answers until it is silent for this time. When it is replaced, packets
	 * already arrive again. Within TCP_RTO_MAX (120 s on Linux, the longest pause between two retransmissions), both
	 * sides send lost data again, and the open health check on it is answered.
	 */
	readonly lateMs: number;
}

export interface RelayTimings extends DialTimings {
	/**
	 * Pauses for a VM that was reached before. They are longer, because many VMs may be dialled while a KVM host is
	 * down.
	 */
	readonly again: Partial<DialTimings>;
	/**
	 * If there is no connection for this time, the progress of dialling is logged, and again after each such period.
	 */
	readonly reportMs: number;
	/** See `ShimSessionOptions`. */
	readonly redialPauseMs: readonly [first: number, longest: number];
	readonly liveness: LivenessTimings;
}

const defaultDialTimings: DialTimings = {
	retryMs: 25,
	patientRetryMs: 250,
	hedgeAfterMs: 100,
	hedgeHandshakeAfterMs: 1500,
	strangerMs: 500,
	connectTimeoutMs: 2000,
	handshakeTimeoutMs: 15_000,
	objectionMs: 100,
	maxPending: 20,
};

const defaultLivenessTimings: LivenessTimings = {
	doubtMs: 3000,
	answerMs: 15_000,
	graceMs: 500,
	lateMs: 130_000,
};

export const defaultTimings: RelayTimings = {
	...defaultDialTimings,
	again: {retryMs: 100, patientRetryMs: 1000, hedgeAfterMs: 500, maxPending: 4},
	reportMs: 20_000,
	redialPauseMs: [100, 5000],
	liveness: defaultLivenessTimings,
};

/** A VM that has not answered for this time is dialled less often. */
export const patientAfterMs = 60_000;

/**
 * A connection that lasted this long is replaced at once. Shorter ones are delayed, so that a VM that accepts and hangs
 * up does not cause constant handshakes.
 */
export const lastingMs = 5000;

/** TCP keepalive detects a dead host; ttrpc has no ping. */
export const keepAliveMs = 30_000;

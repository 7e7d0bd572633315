/**
 * Finds the VM among its candidate addresses: dials each repeatedly until TLS verifies one as the VM.
 *
 *   addresses ──▶ candidate ──▶ attempts: TCP ─▶ TLS ─▶ the first of all wins, everything else is destroyed
 *                     ▲              │
 *                     └── after a pause that depends on how the last one failed
 *
 * While a VM boots, packets to it are first lost, then refused, then answered. Hedged attempts shorten the first phase,
 * in which packets are lost: the kernel retransmits a lost SYN only after 1 s, 3 s and 7 s, and a new attempt is faster
 * (a VM that came up 1.35 s after the first attempt was reached after 63 ms instead of 690 ms). While ARP is
 * unanswered, the kernel queues packets and sends one probe per second. The attempts then keep the neighbour entry
 * alive, so a VM that announces its address is reached at once (10 ms instead of 710 ms). The first answered attempt
 * ends the others; otherwise a VM that has just booted would do several handshakes in parallel (lab medians from the
 * listening forwarder to the answer of StartVM: 500 ms, against 290 ms with one). Knows no ttrpc.
 */
import {connect, type ConnectionOptions, type TLSSocket} from 'node:tls';
import {AdaptorError, codeOf, echoed, toError} from '../core/errors.ts';
import {DeadlineError, Scope} from '../core/lifetime.ts';
import {clockReason} from './clock.ts';
import {patientAfterMs, type DialTimings} from './redial-policy.ts';

/** Ends an attempt because another one at the same address was answered. */
const superseded = stageError('ESUPERSEDED');

export interface DialTarget {
	readonly instanceName: string;
	readonly port: number;
	/** The required name in the certificate. */
	readonly serverName: string;
	/** Context, trusted CAs, and whether to verify. */
	readonly tls: ConnectionOptions;
	/** Start of validity of the CA of the VM certificate. */
	readonly caBegins: Date;
	readonly timings: DialTimings;
	/**
	 * Called each time when another host answers, or when the VM refuses the client. The address is retried.
	 */
	readonly refused: (address: string, refusal: Refusal) => void;
	/** Called when the result of dialling an address differs from the previous one. */
	readonly progressed?: (address: string, progress: string) => void;
}

/** For the operator. */
export interface Refusal {
	readonly reason: string;
	readonly remedy: string;
}

export interface Dialled {
	readonly address: string;
	/** Verified, half-open allowed, not read yet. Owned by the caller. */
	readonly socket: TLSSocket;
}

/**
 * @throws an error of `addresses`, at once; the reason of the signal; after a deadline, an error with the progress of
 * each address
 */
export async function dial(
	addresses: AsyncIterable<string>,
	target: DialTarget,
	signal: AbortSignal,
): Promise<Dialled> {
	using race = new Scope(signal);
	const candidates = new Map<string, Candidate>();
	const {promise, resolve, reject} = Promise.withResolvers<Dialled>();
	const onAbort = (): void => reject(abortReason(race.signal.reason, target, candidates));
	if (race.signal.aborted) {
		onAbort();
	}

	race.signal.addEventListener('abort', onAbort, {once: true});
	const iterator = addresses[Symbol.asyncIterator]();
	const takeUp = async (): Promise<void> => {
		for (
			let next = await iterator.next();
			next.done !== true && !race.signal.aborted;
			next = await iterator.next()
		) {
			const address = next.value;
			if (!candidates.has(address)) {
				candidates.set(address, new Candidate(address, target, socket => resolve({address, socket})));
			}
		}

		if (candidates.size === 0) {
			reject(failure(', no address was found', target, candidates, 'unavailable'));
		}
	};

	takeUp().catch(reject);
	try {
		return await promise;
	} finally {
		race.signal.removeEventListener('abort', onAbort);
		race.abort(new Error('the race is over'));
		for (const candidate of candidates.values()) {
			candidate[Symbol.dispose]();
		}

		// Not awaited: a generator finishes its current step first, and its failure no longer matters.
		iterator.return?.().catch(() => undefined);
	}
}

/** One address, dialled until it is disposed or verified. */
class Candidate implements Disposable {
	readonly address: string;
	/** How the last attempt ended. */
	#outcome: Outcome | undefined;
	readonly #target: DialTarget;
	readonly #onVm: (socket: TLSSocket) => void;
	readonly #startedAt = performance.now();
	readonly #attempts = new Set<TLSSocket>();
	readonly #handshaking = new Set<TLSSocket>();
	#timer: NodeJS.Timeout | undefined;
	#over = false;

	constructor(address: string, target: DialTarget, onVm: (socket: TLSSocket) => void) {
		this.address = address;
		this.#target = target;
		this.#onVm = onVm;
		this.#attempt();
	}

	#attempt(): void {
		const {port, serverName, tls, timings} = this.#target;
		// `allowHalfOpen` is documented for tls.connect and missing from its types.
		const options: ConnectionOptions & {readonly allowHalfOpen: boolean} = {
			...tls,
			host: this.address,
			port,
			servername: serverName,
			allowHalfOpen: true,
		};
		const socket = connect(options);
		socket.setNoDelay(true);
		let timeout = setTimeout(() => socket.destroy(stageError('ETIMEDOUT')), timings.connectTimeoutMs);
		this.#attempts.add(socket);
		let ticket: NodeJS.Immediate | undefined;
		const forget = (): void => {
			clearTimeout(timeout);
			clearImmediate(ticket);
			this.#attempts.delete(socket);
			this.#handshaking.delete(socket);
		};

		socket.once('connect', () => {
			clearTimeout(timeout);
			timeout = setTimeout(() => socket.destroy(stageError('ETLSTIMEDOUT')), timings.handshakeTimeoutMs);
			this.#handshaking.add(socket);
			this.#dropUnanswered();
			this.#schedule(timings.hedgeHandshakeAfterMs);
		});
		let proven = false;
		const win = (): void => {
			forget();
			socket.removeListener('session', onSession);
			socket.removeListener('close', onClose);
			this[Symbol.dispose]();
			this.#onVm(socket);
		};
		// Deferred: OpenSSL emits the event while it reads, and data written before it returns is not sent (Node 24).
		const onSession = (): void => {
			ticket = setImmediate(win);
		};

		socket.once('secureConnect', () => {
			proven = true;
			if (socket.getProtocol() === 'TLSv1.3') {
				clearTimeout(timeout);
				timeout = setTimeout(win, timings.objectionMs);
				socket.once('session', onSession);
			} else {
				win();
			}
		});
		let failure: Error | undefined;
		const onClose = (): void => {
			const reached = proven ? 'proven' : this.#handshaking.has(socket) ? 'connected' : 'nothing';
			forget();
			if (!this.#over && failure !== superseded) {
				this.#failed(failure, reached);
			}
		};
		// Never removed. A TLS alert after the handshake is an error that does not close a half-open socket (Node 24,
		// lib/internal/tls/wrap.js, onerror).
		socket.on('error', error => {
			failure ??= error;
			socket.destroy();
		});
		socket.once('close', onClose);
		if (this.#attempts.size < timings.maxPending) {
			this.#schedule(timings.hedgeAfterMs);
		}
	}

	#dropUnanswered(): void {
		for (const socket of this.#attempts) {
			if (!this.#handshaking.has(socket)) {
				socket.destroy(superseded);
			}
		}
	}

	#failed(error: Error | undefined, reached: Reached): void {
		const {retryMs, patientRetryMs, strangerMs} = this.#target.timings;
		const outcome = explain(error, reached, this.#target);
		if (outcome.progress !== this.#outcome?.progress) {
			this.#target.progressed?.(this.address, outcome.progress);
		}

		this.#outcome = outcome;
		if (outcome.stranger) {
			this.#target.refused(this.address, {reason: outcome.progress, remedy: outcome.remedy});
		}

		const pauseMs = performance.now() - this.#startedAt > patientAfterMs ? patientRetryMs : retryMs;
		this.#schedule(outcome.stranger ? strangerMs : pauseMs);
	}

	#schedule(delayMs: number): void {
		clearTimeout(this.#timer);
		this.#timer = setTimeout(
			() => this.#attempt(),
			this.#handshaking.size > 0 ? Math.max(delayMs, this.#target.timings.hedgeHandshakeAfterMs) : delayMs,
		);
	}

	/** Progress of this address, for the operator. */
	get standing(): Pick<Outcome, 'progress' | 'remedy'> {
		return (
			this.#outcome ??
			(this.#handshaking.size > 0
				? {progress: 'connected, in the TLS handshake', remedy: remedies.handshake}
				: {progress: 'no answer yet', remedy: remedies.silent})
		);
	}

	[Symbol.dispose](): void {
		this.#over = true;
		clearTimeout(this.#timer);
		for (const socket of this.#attempts) {
			socket.destroy();
		}
	}
}

const remedies = {
	noAddress:
		'Check the console of the VM: its image must boot and request an address by DHCP, and LIBVIRT_NET must assign one.',
	silent: 'The VM has not booted yet, or packets are lost: check firewalls and routes between this node and the network of the VM.',
	refused:
		'The VM is up, but its forwarder does not listen: check agent-protocol-forwarder and the kata agent in the journal of the VM, and FORWARDER_PORT.',
	handshake:
		'The TLS handshake with the forwarder of the VM does not succeed: check that its image supports TLS_MIN_VERSION and TLS_CIPHER_SUITES, and check its journal.',
	stranger: 'Another VM has this address: check for stale DHCP leases, and for VMs that were not deleted.',
	client: 'The VM trusts another certificate: it was started with other keys, or its clock is wrong by more than a day.',
	clock: 'Set the clock of this node; then the VM can be reached.',
	ownCa: 'The CA of CACERT_FILE must issue the server certificate of the image for podvm-server; without CACERT_FILE, this node issues it.',
};

/** The progress of an attempt. */
type Reached = 'nothing' | 'connected' | 'proven';

interface Outcome {
	readonly progress: string;
	readonly remedy: string;
	/** Another host, or a VM that refuses this client: retry later only. */
	readonly stranger: boolean;
}

function explain(error: Error | undefined, reached: Reached, {serverName, caBegins}: DialTarget): Outcome {
	const code = error !== undefined && 'code' in error && typeof error.code === 'string' ? error.code : '';
	if (reached === 'proven') {
		return {
			progress: `the VM refuses the client certificate (${code === '' ? 'closed' : code})`,
			remedy: remedies.client,
			stranger: true,
		};
	}

	switch (code) {
		case 'ECONNREFUSED':
			return {progress: 'connection refused', remedy: remedies.refused, stranger: false};
		case 'EHOSTUNREACH':
		case 'ENETUNREACH':
			return {progress: `no route to it (${code})`, remedy: remedies.silent, stranger: false};
		case 'ETIMEDOUT':
			return {progress: 'no answer', remedy: remedies.silent, stranger: false};
		case 'ETLSTIMEDOUT':
			return {
				progress: 'connected, but no answer to the TLS handshake',
				remedy: remedies.handshake,
				stranger: false,
			};
		case 'ERR_TLS_CERT_ALTNAME_INVALID':
			return {
				progress: `its certificate is for ${namesOf(error)}, not for ${serverName}`,
				remedy: remedies.stranger,
				stranger: true,
			};
		case 'CERT_NOT_YET_VALID': {
			// Node gives no details. A certificate from the own CA starts with the CA; a custom one may start later.
			const now = new Date();
			const why =
				caBegins > now ? clockReason(now, caBegins) : `the clock of this node is at ${now.toISOString()}`;
			return {progress: `its certificate is not valid yet: ${why}`, remedy: remedies.clock, stranger: true};
		}

		case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
		case 'UNABLE_TO_GET_ISSUER_CERT':
		case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
		case 'DEPTH_ZERO_SELF_SIGNED_CERT':
		case 'SELF_SIGNED_CERT_IN_CHAIN':
		case 'CERT_SIGNATURE_FAILURE':
		case 'CERT_UNTRUSTED':
		case 'CERT_HAS_EXPIRED':
		case 'INVALID_CA':
		case 'INVALID_PURPOSE':
			return {progress: `its certificate is not accepted (${code})`, remedy: remedies.ownCa, stranger: true};
		default: {
			const reason = code === '' ? 'closed by the other side' : code;
			return reached === 'connected'
				? {progress: `the TLS handshake failed (${reason})`, remedy: remedies.handshake, stranger: false}
				: {progress: `the connection failed (${reason})`, remedy: remedies.silent, stranger: false};
		}
	}
}

/** The names of the certificate, from the error for a name mismatch. */
function namesOf(error: Error | undefined): string {
	const cert: unknown = error !== undefined && 'cert' in error ? error.cert : undefined;
	const names: unknown =
		typeof cert === 'object' && cert !== null && 'subjectaltname' in cert ? cert.subjectaltname : undefined;
	return typeof names === 'string' ? echoed(names.replaceAll('DNS:', '')) : 'another name';
}

function stageError(code: string): Error {
	return Object.assign(new Error(code), {code});
}

function abortReason(reason: unknown, target: DialTarget, candidates: ReadonlyMap<string, Candidate>): Error {
	return codeOf(reason) === 'deadline-exceeded'
		? failure(
				reason instanceof DeadlineError ? ` within ${reason.limit}` : ', the time limit has passed',
				target,
				candidates,
				'deadline-exceeded',
				reason,
			)
		: toError(reason);
}

function failure(
	why: string,
	{instanceName, port}: DialTarget,
	candidates: ReadonlyMap<string, Candidate>,
	code: 'deadline-exceeded' | 'unavailable',
	cause?: unknown,
): AdaptorError {
	const tried = [...candidates.values()];
	const stages = tried.map(({address, standing: {progress}}) => `${address}: ${progress}`);
	return new AdaptorError({
		code,
		what: `Could not reach the forwarder of the pod VM${why}: ${stages.length === 0 ? 'the VM has no address yet' : stages.join('; ')}`,
		where: {instanceName, port},
		remedy: tried.at(-1)?.standing.remedy ?? remedies.noAddress,
		cause,
	});
}

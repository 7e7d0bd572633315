/**
 * Finds the VM among the addresses where it may be: dials each over and over until one proves by its certificate to be
 * the VM.
 *
 *   addresses ──▶ candidate ──▶ attempts: TCP ─▶ TLS ─▶ the first of all wins, everything else is destroyed
 *                     ▲              │
 *                     └── after a pause that depends on how the last one failed
 *
 * While a VM boots its packets vanish, then are refused, then are answered. Vanished ones are the reason why attempts
 * overlap: the kernel repeats a lost SYN only after 1 s, 3 s, 7 s, a fresh attempt comes sooner (a VM that came up 1.35
 * s after the first attempt was reached after 63 ms instead of 690). While ARP is unanswered that does not help, the
 * kernel queues every packet behind one probe a second; but the attempts keep the neighbour's entry alive, and so a VM
 * that announces its address is reached at once (10 ms instead of 710). The first that is answered ends the others: the
 * kernel would go on with them, and a VM that has just come up would do several handshakes at a time (medians in the
 * lab, from the listening forwarder to StartVM's answer: 500 ms, against 290 with one). Knows no ttrpc.
 */
import {connect, type ConnectionOptions, type TLSSocket} from 'node:tls';
import {AdaptorError, codeOf, echoed, toError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {clockReason} from './clock.ts';

/** All in milliseconds but `maxPending`. */
export interface DialTimings {
	/**
	 * After a refusal or a reset: the VM is up and its forwarder about to listen. This is most of what StartVM's answer
	 * can be late.
	 */
	readonly retryMs: number;
	/** The same once an address has been tried for a minute. */
	readonly patientRetryMs: number;
	/** A fresh attempt although the last got no answer yet. */
	readonly hedgeAfterMs: number;
	/** A fresh attempt although the last is in its TLS handshake: a busy VM is not helped by more handshakes. */
	readonly hedgeHandshakeAfterMs: number;
	/** Somebody else answers; the VM may take the address over later. */
	readonly strangerMs: number;
	readonly connectTimeoutMs: number;
	readonly handshakeTimeoutMs: number;
	/**
	 * With TLS 1.3 the client is done before the server has looked at its certificate: so long it may still say no. A
	 * session ticket is a yes.
	 */
	readonly objectionMs: number;
	/** Attempts without an answer at one address at a time. */
	readonly maxPending: number;
}

export const defaultDialTimings: DialTimings = {
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

const patientAfterMs = 60_000;

/** Ends an attempt that tells nothing about the VM: another of the same address was answered. */
const superseded = stageError('ESUPERSEDED');

export interface DialTarget {
	readonly instanceName: string;
	readonly port: number;
	/** The name that the certificate must have. */
	readonly serverName: string;
	/** Context, trust, and whether to verify. */
	readonly tls: ConnectionOptions;
	/** When the CA that the VM's certificate is verified with becomes valid. */
	readonly caBegins: Date;
	readonly timings: DialTimings;
	/**
	 * Hears each time that an address is answered by somebody else, or by a VM that refuses us. The address is tried
	 * again.
	 */
	readonly refused: (address: string, refusal: Refusal) => void;
}

/** For the operator. */
export interface Refusal {
	readonly reason: string;
	readonly remedy: string;
}

export interface Dialled {
	readonly address: string;
	/** Proven, half-open allowed, not read from yet. Owned by the caller. */
	readonly socket: TLSSocket;
}

/**
 * @throws whatever `addresses` throws, at once; the signal's reason, or, when that is a deadline, an error that tells
 * how far each address got
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
			reject(failure('no address was found', target, candidates, 'unavailable'));
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

/** One address, dialled until it is disposed or has won. */
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
		// Later, for the event comes out of OpenSSL's reading, and what is written before that has returned stays
		// unsent: Node 24.
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
		// Stays for good. A TLS alert after the handshake is an error that does not close a half-open socket: Node 24,
		// lib/internal/tls/wrap.js, onerror.
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

	/** How far this address got, for the operator. */
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
		"Look at the VM's console: its image has to boot and ask for an address by DHCP, and LIBVIRT_NET has to give it one.",
	silent: "The VM is not up yet, or a firewall or missing route between this node and the VM's network drops the packets.",
	refused:
		"The VM is up, but its forwarder does not listen: look at agent-protocol-forwarder and the kata agent in the VM's journal, and at FORWARDER_PORT.",
	handshake:
		"The VM's forwarder ends the handshake: compare TLS_MIN_VERSION and TLS_CIPHER_SUITES with what its image can, and look at its journal.",
	stranger: 'Another VM has this address: look for stale DHCP leases, and for VMs that were not deleted.',
	client: 'It trusts another one: it was started with other keys than those of this process, or its clock is more than a day off.',
	clock: "Set this node's clock; the VM is reached then.",
	ownCa: "The image's server certificate has to be issued for podvm-server by the CA of CACERT_FILE, or by this node when that is unset.",
};

/** How far an attempt got. */
type Reached = 'nothing' | 'connected' | 'proven';

interface Outcome {
	readonly progress: string;
	readonly remedy: string;
	/** Not our VM, or not one that wants us: trying again soon is no use. */
	readonly stranger: boolean;
}

function explain(error: Error | undefined, reached: Reached, {serverName, caBegins}: DialTarget): Outcome {
	const code = error !== undefined && 'code' in error && typeof error.code === 'string' ? error.code : '';
	if (reached === 'proven') {
		return {
			progress: `the VM refuses our client certificate (${code === '' ? 'closed' : code})`,
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
			// Node tells no more. A server certificate of ours begins with its CA; an administrator's may begin later.
			const now = new Date();
			const why = caBegins > now ? clockReason(now, caBegins) : `this node's clock says ${now.toISOString()}`;
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

/** The names in the certificate of Node's name mismatch. */
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
		? failure('the time is up', target, candidates, 'deadline-exceeded', reason)
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
		what: `Could not reach the pod VM's forwarder, ${why}: ${stages.length === 0 ? 'the VM has no address yet' : stages.join('; ')}`,
		where: {instanceName, port},
		remedy: tried.at(-1)?.standing.remedy ?? remedies.noAddress,
		cause,
	});
}

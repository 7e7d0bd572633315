/**
 * What the KVM host offers, as its libvirt tells: asked once a connection, by whoever needs it first, for a new
 * connection may be to a host that was updated. Judges nothing.
 */
import {abortable, neverAborts} from '../core/lifetime.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {hostSupport, type HostSupport} from './host-support.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {readSecureExecutionSupport, type SecureExecutionSupport} from './secure-execution.ts';

/** The session bounds its calls itself. */

export class HostCapabilities {
	readonly #support: SharedAnswer<HostSupport>;
	readonly #secureExecution: SharedAnswer<SecureExecutionSupport>;

	/**
	 * Listens to the session for as long as that lives; those who do so later are told of a new connection when the old
	 * one's answers are forgotten.
	 */
	constructor(session: Pick<LibvirtCalls, 'call' | 'onState'>) {
		this.#support = new SharedAnswer(async () =>
			hostSupport((await session.call(procedures.connectGetCapabilities, undefined, neverAborts)).capabilities),
		);
		this.#secureExecution = new SharedAnswer(async () =>
			readSecureExecutionSupport(session, await this.support(neverAborts), neverAborts),
		);
		session.onState(({name}) => {
			if (name === 'connected') {
				this.forget();
			}
		});
	}

	/**
	 * @throws AdaptorError 'failed-precondition' for a host that runs no s390x guests at all; else as
	 * `LibvirtSession.call`
	 */
	async support(signal: AbortSignal): Promise<HostSupport> {
		return this.#support.get(signal);
	}

	/** @throws as `support`; LibvirtError where libvirt cannot tell */
	async secureExecution(signal: AbortSignal): Promise<SecureExecutionSupport> {
		return this.#secureExecution.get(signal);
	}

	/** Something failed that an update of the host may explain: ask again. */
	forget(): void {
		this.#support.forget();
		this.#secureExecution.forget();
	}
}

/** One question for all who ask at the same time: hence none of their signals. One that failed is asked again. */
export class SharedAnswer<T> {
	readonly #ask: () => Promise<T>;
	#answer: Promise<T> | undefined;

	constructor(ask: () => Promise<T>) {
		this.#ask = ask;
	}

	async get(signal: AbortSignal): Promise<T> {
		const answer = this.#answer ?? this.#begin();
		return abortable(answer, signal);
	}

	forget(): void {
		this.#answer = undefined;
	}

	#begin(): Promise<T> {
		const answer = this.#ask();
		this.#answer = answer;
		answer.catch(() => {
			if (this.#answer === answer) {
				this.forget();
			}
		});
		return answer;
	}
}

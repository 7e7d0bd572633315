/**
 * Who may do what in which state. Policy only: no I/O, no waiting.
 * Every state is listed: a new one does not compile until it is decided on.
 */
import {AdaptorError} from '../core/errors.ts';
import type {PodRequest} from './pod-request.ts';
import type {AgentRelay, ForwarderTls, PodNetwork, PodVm, SandboxId} from './ports.ts';
import type {SandboxRecord} from './records.ts';

/** What CreateVM found out and reserved; StartVM works from it alone. */
export interface Prepared {
	readonly request: PodRequest;
	readonly network: PodNetwork;
	readonly tls: ForwarderTls;
}

/*
 *  create ──▶ creating ──▶ created ──start──▶ starting ──▶ booting ──▶ running
 *                │            │                  │            │           │
 *                │            │                  └──▶ failed ◀┘           │
 *                └────────────┴──────── stop ───────────┴─────────────────┘──▶ stopping ──▶ gone
 *
 *  running ── the VM ends ──▶ failed
 *  restart ──▶ recovering ──▶ created, running, failed, stopping or gone, as decision.ts decides
 */
export type SandboxState =
	| {readonly name: 'creating'; readonly made: Leftovers}
	/** Of an earlier run: its record is known, what has become of it is not yet. */
	| {readonly name: 'recovering'; readonly record: SandboxRecord}
	/** `isElsewhereToo`: resumed while a predecessor was alive, which may have a start of it waiting for its turn. */
	| {readonly name: 'created'; readonly prepared: Prepared; readonly isElsewhereToo?: boolean}
	/** Nothing is known of a VM yet, but there may be one. */
	| {readonly name: 'starting'; readonly prepared: Prepared}
	/** The VM runs; it is of no use yet. `relay`: its agent was reached. */
	| {readonly name: 'booting'; readonly prepared: Prepared; readonly vm: PodVm; readonly relay?: AgentRelay}
	| {readonly name: 'running'; readonly prepared: Prepared; readonly vm: PodVm; readonly relay: AgentRelay}
	/**
	 * Did not start, or its VM has ended. Remembered until it is stopped, so that a late call learns why.
	 * `leftovers`: what could not be rolled back, to be tried again; of a VM that has ended, everything.
	 */
	| {readonly name: 'failed'; readonly reason: AdaptorError; readonly leftovers: Leftovers}
	| {readonly name: 'stopping'; readonly leftovers: Leftovers}
	| {readonly name: 'gone'};

/**
 * What may follow what. Every change of a sandbox's state is checked against it (`assertTransition`): a bug shows where
 * it happens, not where it hurts. `created` goes back to `recovering` when a predecessor turns out to have started it.
 */
const transitions: Readonly<Record<SandboxState['name'], ReadonlyArray<SandboxState['name']>>> = {
	creating: ['creating', 'created', 'stopping', 'gone'],
	recovering: ['recovering', 'created', 'running', 'failed', 'stopping', 'gone'],
	created: ['starting', 'recovering', 'failed', 'stopping', 'gone'],
	starting: ['booting', 'failed', 'stopping'],
	booting: ['booting', 'running', 'failed', 'stopping'],
	running: ['failed', 'stopping'],
	failed: ['stopping'],
	stopping: ['stopping', 'gone'],
	gone: [],
};

/** @throws AdaptorError 'internal' for a change that may not be */
export function assertTransition(id: SandboxId, from: SandboxState['name'], to: SandboxState['name']): void {
	if (!transitions[from].includes(to)) {
		throw new AdaptorError({
			code: 'internal',
			what: `A sandbox may not go from ${from} to ${to}`,
			where: {sandboxId: id},
			remedy: 'This is a bug of cloud-api-adaptor: please report it with the log of this sandbox.',
		});
	}
}

export type StateOf<Name extends SandboxState['name']> = Extract<SandboxState, {readonly name: Name}>;

/** What there may be to remove. */
export interface Leftovers {
	/** Absent: none was reserved, or by an earlier run of the daemon. */
	readonly network?: PodNetwork;
	/** The namespace in which one may have been reserved, as far as anybody knows. */
	readonly reservingIn?: string;
	readonly mayHaveVm: boolean;
	/** Absent: none is open in this daemon. */
	readonly relay?: AgentRelay;
}

export const nothing: Leftovers = {mayHaveVm: false};

export type Admission =
	| {readonly verdict: 'go'}
	/** Already so: answer success. */
	| {readonly verdict: 'done'}
	| {readonly verdict: 'refuse'; readonly why: 'not-found' | 'failed-precondition'; readonly cause?: AdaptorError};

/** Called with the mailbox held, so no other task of the same sandbox is under way. */
export function admitStart(state: SandboxState): Admission {
	switch (state.name) {
		case 'created': {
			return {verdict: 'go'};
		}

		case 'running': {
			return {verdict: 'done'};
		}

		case 'failed': {
			return {verdict: 'refuse', why: 'failed-precondition', cause: state.reason};
		}

		case 'creating':
		case 'recovering':
		case 'starting':
		case 'booting':
		case 'stopping':
		case 'gone': {
			return {verdict: 'refuse', why: 'not-found'};
		}
	}
}

/** What the caller gets to read of a start that is refused. */
export function refusal(id: SandboxId, why: 'not-found' | 'failed-precondition', cause?: AdaptorError): AdaptorError {
	return new AdaptorError({
		code: why,
		what:
			why === 'not-found'
				? 'There is no such sandbox'
				: `The sandbox has failed${cause === undefined ? '' : `: ${cause.what}`}`,
		where: {sandboxId: id},
		remedy: why === 'not-found' ? 'CreateVM comes first.' : 'Stop it, then create it again.',
		cause,
	});
}

/** What a removal that begins now has to remove. */
export function leftoversOf(state: SandboxState): Leftovers {
	switch (state.name) {
		case 'created': {
			return {network: state.prepared.network, mayHaveVm: state.isElsewhereToo === true};
		}

		case 'starting': {
			// A start that was cut off from the host cannot know, and cannot keep its promise to leave nothing.
			return {network: state.prepared.network, mayHaveVm: true};
		}

		case 'booting':
		case 'running': {
			const {
				prepared: {network},
				relay,
			} = state;
			return {network, mayHaveVm: true, ...(relay === undefined ? {} : {relay})};
		}

		case 'recovering': {
			return leftoversOnRecord(state.record);
		}

		case 'failed':
		case 'stopping': {
			return state.leftovers;
		}

		case 'creating': {
			return state.made;
		}

		case 'gone': {
			return nothing;
		}
	}
}

/** What an earlier run of the daemon may have left of a sandbox. */
export function leftoversOnRecord(record: SandboxRecord): Leftovers {
	return record.state === 'creating'
		? {reservingIn: record.netnsPath, mayHaveVm: false}
		: {network: record.network, mayHaveVm: true};
}

/** The VM of a sandbox, from the moment it exists until it is to be deleted. */
export function vmIn(state: SandboxState): PodVm | undefined {
	switch (state.name) {
		case 'booting':
		case 'running': {
			return state.vm;
		}

		case 'recovering': {
			return state.record.state === 'running' ? state.record.vm : undefined;
		}

		case 'creating':
		case 'created':
		case 'starting':
		case 'failed':
		case 'stopping':
		case 'gone': {
			return undefined;
		}
	}
}

/** What counts against the limit of the node: sandboxes that have a VM, or are to have one. */
export function occupiesPlace(state: SandboxState): boolean {
	switch (state.name) {
		case 'creating':
		case 'recovering':
		case 'created':
		case 'starting':
		case 'booting':
		case 'running': {
			return true;
		}

		case 'failed':
		case 'stopping':
		case 'gone': {
			return false;
		}
	}
}

/**
 * Who may do what in which state. Policy only: no I/O, no waiting.
 * Every state is listed: a new one does not compile until it is decided on.
 */
import type {PodRequest} from './pod-request.ts';
import type {AgentRelay, ForwarderTls, PodNetwork, PodVm} from './ports.ts';

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
 */
export type SandboxState =
	| {readonly name: 'creating'; readonly abort: AbortController}
	| {readonly name: 'created'; readonly prepared: Prepared}
	/** Nothing is known of a VM yet, but there may be one. */
	| {readonly name: 'starting'; readonly prepared: Prepared; readonly abort: AbortController}
	/** The VM runs; its agent cannot be reached yet. */
	| {readonly name: 'booting'; readonly prepared: Prepared; readonly abort: AbortController; readonly vm: PodVm}
	| {readonly name: 'running'; readonly prepared: Prepared; readonly vm: PodVm; readonly relay: AgentRelay}
	/** Remembered until it is stopped, so that a late call learns why. `leftovers`: what could not be unwound, to be tried again. */
	| {readonly name: 'failed'; readonly reason: Error; readonly leftovers?: Prepared}
	| {readonly name: 'stopping'; readonly prepared?: Prepared}
	| {readonly name: 'gone'};

export type Verdict =
	| {readonly verdict: 'go'}
	/** Already so: answer success. */
	| {readonly verdict: 'done'}
	| {readonly verdict: 'refuse'; readonly why: 'not-found' | 'failed-precondition'; readonly cause?: Error};

/** Called with the mailbox held, so no other task of the same sandbox is under way. */
export function admitStart(state: SandboxState): Verdict {
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
		case 'starting':
		case 'booting':
		case 'stopping':
		case 'gone': {
			return {verdict: 'refuse', why: 'not-found'};
		}
	}
}

/** The task that a stop has to end before its turn in the mailbox can come. */
export function toAbort(state: SandboxState): AbortController | undefined {
	switch (state.name) {
		case 'creating':
		case 'starting':
		case 'booting': {
			return state.abort;
		}

		case 'created':
		case 'running':
		case 'failed':
		case 'stopping':
		case 'gone': {
			return undefined;
		}
	}
}

/** The VM of a sandbox, from the moment it exists until it is to be deleted. */
export function vmIn(state: SandboxState): PodVm | undefined {
	switch (state.name) {
		case 'booting':
		case 'running': {
			return state.vm;
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

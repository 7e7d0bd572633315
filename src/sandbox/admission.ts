/**
 * Decides which action is allowed in which state. Policy only: no I/O, no waiting.
 * Every state is listed: code with a new state does not compile until each function handles it.
 */
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import type {PodRequest} from './pod-request.ts';
import type {AgentRelay, ForwarderTls, PodNetwork, PodVm, SandboxId} from './ports.ts';
import type {SandboxRecord} from './records.ts';

/** The data and reservations of CreateVM. StartVM needs nothing else. */
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
	/** From an earlier run: its record is known, its current state is not. */
	| {readonly name: 'recovering'; readonly record: SandboxRecord}
	/** `isElsewhereToo`: resumed while a predecessor was alive, which may have a queued start of this sandbox. */
	| {readonly name: 'created'; readonly prepared: Prepared; readonly isElsewhereToo?: boolean}
	/** A VM may exist, but is not known yet. */
	| {readonly name: 'starting'; readonly prepared: Prepared}
	/** The VM runs, but is not ready. `relay` is set when its agent was reached. */
	| {readonly name: 'booting'; readonly prepared: Prepared; readonly vm: PodVm; readonly relay?: AgentRelay}
	| {readonly name: 'running'; readonly prepared: Prepared; readonly vm: PodVm; readonly relay: AgentRelay}
	/**
	 * Did not start, or its VM has ended. Kept until it is stopped, so that later calls get the reason. `leftovers`:
	 * what the roll-back could not remove and will retry. If the VM has ended, they include everything.
	 */
	| {readonly name: 'failed'; readonly reason: AdaptorError; readonly leftovers: Leftovers}
	| {readonly name: 'stopping'; readonly leftovers: Leftovers}
	| {readonly name: 'gone'};

/**
 * The allowed transitions. `assertTransition` checks every change of state, so that a bug shows at its origin.
 * `created` goes back to `recovering` if a predecessor has started the sandbox.
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

/** @throws AdaptorError 'internal' for a transition that is not allowed */
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

/** The leftovers: what may still have to be removed. */
export interface Leftovers {
	/** Absent: none was reserved, or an earlier run of the daemon reserved it. */
	readonly network?: PodNetwork;
	/** The namespace in which a network may have been reserved. */
	readonly reservingIn?: string;
	readonly mayHaveVm: boolean;
	/** Absent: none is open in this daemon. */
	readonly relay?: AgentRelay;
}

export const nothing: Leftovers = {mayHaveVm: false};

export type Admission =
	| {readonly verdict: 'go'}
	/** Nothing is left to do: the call succeeds. */
	| {readonly verdict: 'done'}
	| {readonly verdict: 'refuse'; readonly why: 'not-found' | 'failed-precondition'; readonly cause?: AdaptorError};

/** The caller holds the mutex of the sandbox, so no other task of it runs. */
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

/** The error for the caller of a refused start. */
export function refusal(id: SandboxId, why: 'not-found' | 'failed-precondition', cause?: AdaptorError): AdaptorError {
	return new AdaptorError({
		code: why,
		what:
			why === 'not-found'
				? 'There is no such sandbox'
				: `The sandbox has failed${cause === undefined ? '' : `: ${cause.what}`}`,
		where: {sandboxId: id},
		remedy: why === 'not-found' ? 'Call CreateVM first.' : 'Call StopVM, then CreateVM again.',
		cause,
	});
}

/** The leftovers for a removal that begins in this state. */
export function leftoversOf(state: SandboxState): Leftovers {
	switch (state.name) {
		case 'created': {
			return {network: state.prepared.network, mayHaveVm: state.isElsewhereToo === true};
		}

		case 'starting': {
			// A start that lost its connection to the host cannot know whether it left a VM.
			return {network: state.prepared.network, mayHaveVm: true};
		}

		case 'booting':
		case 'running': {
			const {
				prepared: {network},
				relay,
			} = state;
			return {network, mayHaveVm: true, ...present({relay})};
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

/** The leftovers of an earlier run of the daemon, according to the record. */
export function leftoversOnRecord(record: SandboxRecord): Leftovers {
	return record.state === 'creating'
		? {reservingIn: record.netnsPath, mayHaveVm: false}
		: {network: record.network, mayHaveVm: true};
}

/** The VM of a sandbox, from its creation until its removal begins. */
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

/** Whether the sandbox counts against the limit of the node: it has a VM, or will have one. */
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

/**
 * What has become of a sandbox that an earlier run of the daemon has left, and taking it up where that is possible. Decides and opens; undoes
 * nothing, and writes no state: what was found is said as a value.
 */
import {AdaptorError} from '../errors.ts';
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import {levelOfAttempt, type Logger} from '../log.ts';
import type {StateOf} from './admission.ts';
import {claimedVm, runningNames, relayTarget} from './names.ts';
import type {OwnRecord} from './own-record.ts';
import type {AgentRelay, PodVmRecord} from './ports.ts';
import type {SandboxRecord, SandboxRecords} from './records.ts';
import type {SandboxWorld} from './world.ts';

export interface Recovery {
	/** The VMs at the hypervisor; asked again until it answers or the signal aborts. */
	readonly vms: (signal: AbortSignal) => Promise<readonly PodVmRecord[]>;
	/** How long to leave a start alone that seems to be cut off: while the daemon before this one may still be at it. */
	readonly halfMadeGraceMs: Promise<number>;
}

/** What has become of a sandbox that was on record. */
export type Finding =
	/** It goes on from here. */
	| {readonly verdict: 'goes-on'; readonly state: StateOf<'created' | 'running'>}
	| MovedOn
	/** Its creation was cut off. */
	| {readonly verdict: 'cut-off'}
	/** It was being removed. */
	| {readonly verdict: 'stopping'}
	/** It cannot come back. */
	| {readonly verdict: 'lost'; readonly reason: AdaptorError};

/** The daemon before this one has brought it a step on, to another record, or to its end: that is to be taken up in its place. */
export interface MovedOn {
	readonly verdict: 'moved-on';
	readonly to: SandboxRecord | undefined;
}

/** What a sandbox's life is taken up with. */
export interface Resumption extends Recovery {
	readonly world: SandboxWorld;
	readonly ownRecord: OwnRecord;
	readonly log: Logger;
}

/** Tries until it is known what has become of a sandbox. Rejects with the signal's reason only. */
export async function resume(record: SandboxRecord, resumption: Resumption, signal: AbortSignal): Promise<Finding> {
	const pauses = backOff(...resumption.world.removalRetryMs);
	for (;;) {
		signal.throwIfAborted();
		try {
			return await tryToResume(record, resumption, signal);
		} catch (error) {
			signal.throwIfAborted();
			if (isLost(error)) {
				resumption.log.warn({err: error}, 'sandbox of an earlier run is lost and removed');
				return {verdict: 'lost', reason: error};
			}

			// The host is away, perhaps: no reason to give a running pod up.
			resumption.log.warn({err: error}, 'sandbox of an earlier run not taken up yet, it is tried again');
			await pause(pauses.next().value, signal);
		}
	}
}

async function tryToResume(record: SandboxRecord, resumption: Resumption, signal: AbortSignal): Promise<Finding> {
	const {world, vms, halfMadeGraceMs, log} = resumption;
	switch (record.state) {
		case 'creating': {
			const finding = await movedOn(record, world.records, halfMadeGraceMs, signal);
			if (finding !== undefined) {
				return finding;
			}

			log.info({netns: record.netnsPath}, 'creation that was cut off is undone');
			return {verdict: 'cut-off'};
		}

		case 'created': {
			const {id, request, network} = record;
			const hasVm = async (): Promise<boolean> => (await vms(signal)).some(({sandboxId}) => sandboxId === id);
			if (await hasVm()) {
				const finding = await movedOn(record, world.records, halfMadeGraceMs, signal);
				if (finding !== undefined) {
					return finding;
				}

				if (await hasVm()) {
					throw new AdaptorError({code: 'aborted', what: 'The start of the pod VM was cut off when the daemon ended', where: {sandboxId: id}});
				}
			}

			const tls = await world.relays.issue(request.instanceName, signal);
			const isElsewhereToo = await abortable(halfMadeGraceMs, signal) > 0;
			log.info({vni: network.vxlanId}, 'sandbox of an earlier run taken up, not started yet');
			return {verdict: 'goes-on', state: {name: 'created', prepared: {request, network, tls}, isElsewhereToo}};
		}

		case 'running': {
			const state = await serveAgain(record, resumption, signal);
			log.info(runningNames(state), 'sandbox of an earlier run taken up');
			return {verdict: 'goes-on', state};
		}

		case 'stopping': {
			return {verdict: 'stopping'};
		}
	}
}

/** Whether an earlier run's sandbox cannot come back: its VM has ended, or its pod's namespace is gone. Anything else may pass. */
function isLost(error: unknown): error is AdaptorError {
	return error instanceof AdaptorError && (error.code === 'aborted' || error.code === 'not-found');
}

/** After so long without an answer of the VM the log says how far dialling got. */
const reachReportMs = 20_000;

/** How often to look whether the daemon before this one has brought a start to its end: once that daemon ends, nobody serves the sandbox. */
const lookAgainMs = 500;

/**
 * Waits until the daemon before this one has brought a sandbox a step on from where its record was, for as long as it may be at it.
 * @returns undefined when it is as it was
 */
export async function movedOn(
	{id, state}: Pick<SandboxRecord, 'id' | 'state'>, records: Pick<SandboxRecords, 'read'>, halfMadeGraceMs: Promise<number>, signal: AbortSignal,
): Promise<MovedOn | undefined> {
	for (let leftMs = await abortable(halfMadeGraceMs, signal); ; leftMs -= lookAgainMs) {
		const latest = await records.read(id);
		if (latest?.state !== state) {
			return {verdict: 'moved-on', to: latest};
		}

		if (leftMs <= 0) {
			return undefined;
		}

		await pause(Math.min(leftMs, lookAgainMs), signal);
	}
}

async function serveAgain(record: SandboxRecord & {readonly state: 'running'}, resumption: Resumption, signal: AbortSignal): Promise<StateOf<'running'>> {
	const {id, request, network, vm} = record;
	const {world: {networks, relays, cluster}, ownRecord} = resumption;
	using looking = new Scope(signal);
	const tls = await relays.issue(request.instanceName, looking.signal);
	const relay = await reach(record, resumption, looking.signal);
	try {
		await networks.attach(network, relay.address, looking.signal);
		await ownRecord.write({request, network, state: 'running', vm, address: relay.address});
		looking.signal.throwIfAborted();
	} catch (error) {
		await relay[Symbol.asyncDispose]();
		throw error;
	}

	// A claim that an earlier run did not get through to the cluster is made up for.
	void cluster.claim(claimedVm(id, request), signal).catch(() => undefined);
	return {name: 'running', prepared: {request, network, tls}, vm, relay};
}

/** A VM that does not answer is looked for without a pause, and said to be missing: now, and less and less often. */
async function reach({id, request, vm, address}: SandboxRecord & {readonly state: 'running'}, {world, log}: Resumption, signal: AbortSignal): Promise<AgentRelay> {
	for (let attempt = 1; ; attempt++) {
		using scope = new Scope(signal).deadline(world.reachReportMs ?? reachReportMs, 'the pod VM to answer');
		try {
			return await world.relays.open(relayTarget(id, request, world), startingWith(address, world.podVms.addresses(vm, scope.signal)), scope.signal);
		} catch (error) {
			if (signal.aborted || !scope.signal.aborted || isLost(error)) {
				throw error;
			}

			log[levelOfAttempt(attempt)]({err: error, attempt}, 'sandbox of an earlier run not taken up yet, it is tried again');
		}
	}
}

/** The address that was right before, then those that are found. No generator: that would end only with one more address, perhaps never. */
function startingWith(address: string, found: AsyncGenerator<string, never>): AsyncIterable<string> {
	let isFirst = true;
	const next = async (): Promise<IteratorResult<string, never>> => {
		if (isFirst) {
			isFirst = false;
			return {value: address};
		}

		const other = await found.next();
		return other.done !== true && other.value === address ? next() : other;
	};

	return {[Symbol.asyncIterator]: () => ({next, return: async () => found.return(undefined as never)})};
}

/**
 * Takes in hand again what an earlier run of the daemon has left: the way back to the states 'created' and 'running'.
 * Decides nothing, undoes nothing, and writes no state. What it throws says that it did not work this time; only a
 * `PodVmEndedError` says that it never will.
 */
import {Scope} from '../core/lifetime.ts';
import type {StateOf} from './admission.ts';
import type {SandboxContext} from './context.ts';
import {registeredVm, relayTarget} from './identities.ts';
import type {AgentRelay, PodNetwork} from './ports.ts';
import type {RecordWriter} from './record-writer.ts';
import type {SandboxRecord} from './records.ts';
import {PodVmEndedError} from './vm-ended.ts';

type Created = SandboxRecord & {readonly state: 'created'};
type Running = SandboxRecord & {readonly state: 'running'};

type OnFailure = (failed: {readonly error: unknown; readonly attempt: number}) => void;

/** After so long without an answer of the VM the log says how far dialling got. */
const reachReportMs = 20_000;

/**
 * A sandbox that was not started: it can be now.
 * @param hasPredecessor one may be starting it
 */
export async function resumeCreated(
	{request, network}: Created,
	{relays}: SandboxContext,
	hasPredecessor: boolean,
	signal: AbortSignal,
): Promise<StateOf<'created'>> {
	const tls = await relays.issue(request.instanceName, signal);
	return {name: 'created', prepared: {request, network, tls}, isElsewhereToo: hasPredecessor};
}

/**
 * A sandbox that ran: its agent is reached again at the same socket, from the remembered address on, and its tunnel is
 * repaired.
 */
export async function resumeRunning(
	record: Running,
	context: SandboxContext,
	recordWriter: RecordWriter,
	onFailure: OnFailure,
	signal: AbortSignal,
): Promise<StateOf<'running'>> {
	const {id, request, vm} = record;
	const {networks, relays, cluster} = context;
	const tls = await relays.issue(request.instanceName, signal);
	const relay = await reach(record, context, onFailure, signal);
	try {
		const network = await identified(record.network, context, signal);
		await networks.attach(network, relay.address, signal);
		await recordWriter.write({request, network, state: 'running', vm, address: relay.address});
		signal.throwIfAborted();
		// What an earlier run did not get through to the cluster is made up for.
		void cluster.registerVm(registeredVm(id, request), signal).catch(() => undefined);
		return {name: 'running', prepared: {request, network, tls}, vm, relay};
	} catch (error) {
		await relay[Symbol.asyncDispose]();
		throw error;
	}
}

/** A VM that does not answer is looked for without a pause, and said to be missing: now, and less and less often. */
async function reach(
	{id, request, vm, address}: Running,
	context: SandboxContext,
	onFailure: OnFailure,
	signal: AbortSignal,
): Promise<AgentRelay> {
	for (let attempt = 1; ; attempt++) {
		using scope = new Scope(signal).deadline(context.reachReportMs ?? reachReportMs, 'the pod VM to answer');
		try {
			return await context.relays.open(
				relayTarget(id, request, context),
				startingWith(address, context.podVms.addresses(vm, scope.signal)),
				scope.signal,
			);
		} catch (error) {
			if (signal.aborted || !scope.signal.aborted || error instanceof PodVmEndedError) {
				throw error;
			}

			onFailure({error, attempt});
		}
	}
}

/** Versions before this one did not record which namespace it is. */
async function identified(network: PodNetwork, {networks}: SandboxContext, signal: AbortSignal): Promise<PodNetwork> {
	return network.netns === undefined ? networks.identify(network, signal) : network;
}

/**
 * The address that was right before, then those that are found. No generator: that would end only with one more
 * address, perhaps never.
 */
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

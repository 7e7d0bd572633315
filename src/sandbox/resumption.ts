/**
 * Resumes sandboxes of an earlier run of the daemon: back to the states 'created' and 'running'. Decides nothing,
 * undoes nothing and writes no state. After an error the caller may retry; only a `PodVmEndedError` is final.
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

/** If the VM does not answer for this time, the log shows the progress of dialling. */
const reachReportMs = 20_000;

/**
 * Resumes a sandbox that was not started; it can be started afterwards.
 * @param hasPredecessor a predecessor may be starting it
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
 * Resumes a running sandbox: connects to its agent, beginning with the remembered address, serves the same socket, and
 * repairs its tunnel.
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
		// The registration of an earlier run may have failed.
		void cluster.registerVm(registeredVm(id, request), signal).catch(() => undefined);
		return {name: 'running', prepared: {request, network, tls}, vm, relay};
	} catch (error) {
		// The pod continues to run: a relay in the relay process stays open.
		await relay.leave();
		throw error;
	}
}

/** Keeps dialling a VM that does not answer, and reports this at growing intervals. */
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

/** Earlier versions did not record the identity of the namespace. */
async function identified(network: PodNetwork, {networks}: SandboxContext, signal: AbortSignal): Promise<PodNetwork> {
	return network.netns === undefined ? networks.identify(network, signal) : network;
}

/**
 * The remembered address, then those that are found. Not a generator: ending a generator waits for its next address,
 * possibly forever.
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

/**
 * The steps of CreateVM: reads the pod and reserves resources, recording each step first. Does not roll back: each
 * state lists what a roll-back has to remove.
 */
import {nothing, type StateOf} from './admission.ts';
import type {RecordWriter} from './record-writer.ts';
import type {PodRequest} from './pod-request.ts';
import type {SandboxId} from './ports.ts';
import type {SandboxContext} from './context.ts';

/** @returns the states of the creation, each as soon as it is reached; the last is 'created' */
export async function* prepare(
	id: SandboxId,
	request: PodRequest,
	netnsPath: string,
	{networks, relays}: SandboxContext,
	recordWriter: RecordWriter,
	signal: AbortSignal,
): AsyncGenerator<StateOf<'creating' | 'created'>, void> {
	await recordWriter.write({request, netnsPath, state: 'creating'});
	yield {name: 'creating', made: {...nothing, reservingIn: netnsPath}};
	const network = await networks.reserve(id, netnsPath, signal);
	yield {name: 'creating', made: {...nothing, network}};
	const tls = await relays.issue(request.instanceName, signal);
	await recordWriter.write({request, network, state: 'created'});
	signal.throwIfAborted();
	yield {name: 'created', prepared: {request, network, tls}};
}

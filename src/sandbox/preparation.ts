/**
 * What CreateVM finds out and reserves, in the order in which it goes on record. Undoes nothing: the states that a
 * creation goes through say at any time what there is to undo.
 */
import {nothing, type StateOf} from './admission.ts';
import type {RecordWriter} from './record-writer.ts';
import type {PodRequest} from './pod-request.ts';
import type {SandboxId} from './ports.ts';
import type {SandboxContext} from './context.ts';

/** @returns the states of a creation, each as soon as it is reached; the last is 'created' */
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

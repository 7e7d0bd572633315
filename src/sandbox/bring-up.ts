/**
 * How a sandbox that is created comes to run: the steps of a start, one after the other. Undoes nothing: the states that it goes through say at
 * any time what there is to undo.
 */
import {Scope} from '../lifetime.ts';
import type {Prepared, StateOf} from './admission.ts';
import {guestFiles} from './guest-files.ts';
import {registeredVm, relayTarget} from './names.ts';
import type {RecordWriter} from './record-writer.ts';
import type {SandboxId} from './ports.ts';
import type {Stages} from './stages.ts';
import type {SandboxContext} from './context.ts';

/** @returns the states that follow 'starting', each as soon as it is reached; the last is 'running' */
export async function* bringUp(
	id: SandboxId, prepared: Prepared, context: SandboxContext, recordWriter: RecordWriter, stages: Stages, signal: AbortSignal,
): AsyncGenerator<StateOf<'booting' | 'running'>, void> {
	const {podVms, networks, relays, cluster, starts, hasScratchSpace, agentTimeoutMs} = context;
	const {request, network, tls} = prepared;
	stages.enter('get a turn to start');
	using _turn = await starts.acquire(signal);
	stages.enter('tell the cluster');
	const [pullCredentials] = await Promise.all([cluster.pullCredentials(request.pod, signal), cluster.claim(registeredVm(id, request), signal)]);
	stages.enter('start the VM');
	const vm = await podVms.start({
		sandboxId: id,
		instanceName: request.instanceName,
		pod: request.pod,
		vcpus: request.vcpus,
		memoryMib: request.memoryMib,
		...(request.image === undefined ? {} : {image: request.image}),
		vni: network.vxlanId,
		files: guestFiles({pod: request.pod, network, tls, pullCredentials, initdata: request.initdata, hasScratchSpace}),
	}, signal);
	yield {name: 'booting', prepared, vm};
	stages.enter('reach the agent');
	using reaching = new Scope(signal).deadline(agentTimeoutMs, 'the pod VM\'s forwarder to answer (PROXY_TIMEOUT)');
	const relay = await relays.open(relayTarget(id, request, context), podVms.addresses(vm, reaching.signal), reaching.signal);
	yield {name: 'booting', prepared, vm, relay};
	stages.enter('attach the network');
	await networks.attach(network, relay.address, signal);
	stages.enter('record that it runs');
	await recordWriter.write({request, network, state: 'running', vm, address: relay.address});
	signal.throwIfAborted();
	yield {name: 'running', prepared, vm, relay};
}

/**
 * How a sandbox that is created comes to run: the steps of a start, one after the other. Undoes nothing: the states
 * that it goes through say at any time what there is to undo.
 */
import {Scope} from '../core/lifetime.ts';
import type {Prepared, StateOf} from './admission.ts';
import {guestFiles} from './guest-files.ts';
import {registeredVm, relayTarget} from './identities.ts';
import type {RecordWriter} from './record-writer.ts';
import type {SandboxId} from './ports.ts';
import type {Stages} from './stages.ts';
import type {SandboxContext} from './context.ts';

/**
 * How long a VM that runs keeps its turn to start, unless it answers sooner: most guests boot in that time, or will
 * not.
 */
const bootTurnMs = 30_000;

/** @returns the states that follow 'starting', each as soon as it is reached; the last is 'running' */
export async function* bringUp(
	id: SandboxId,
	prepared: Prepared,
	context: SandboxContext,
	recordWriter: RecordWriter,
	stages: Stages,
	signal: AbortSignal,
): AsyncGenerator<StateOf<'booting' | 'running'>, void> {
	const {podVms, networks, relays, cluster, starts, hasScratchSpace, agentTimeoutMs} = context;
	const {request, network, tls} = prepared;
	stages.enter('get a turn to start');
	// By namespace, so that one with many starts does not keep another waiting for all of them.
	using turn = await starts.acquire(signal, request.pod.namespace);
	stages.enter('tell the cluster');
	const [pullCredentials] = await Promise.all([
		cluster.pullCredentials(request.pod, signal),
		cluster.registerVm(registeredVm(id, request), signal),
	]);
	stages.enter('start the VM');
	const vm = await podVms.start(
		{
			sandboxId: id,
			instanceName: request.instanceName,
			pod: request.pod,
			vcpus: request.vcpus,
			memoryMib: request.memoryMib,
			...(request.image === undefined ? {} : {image: request.image}),
			vni: network.vxlanId,
			files: guestFiles({
				pod: request.pod,
				network,
				tls,
				pullCredentials,
				initdata: request.initdata,
				hasScratchSpace,
			}),
		},
		signal,
	);
	yield {name: 'booting', prepared, vm};
	stages.enter('reach the agent');
	// A guest that boots loads the host; one that never comes up must not hold the turn until its time is up.
	using _boot = after(context.bootTurnMs ?? bootTurnMs, () => turn[Symbol.dispose]());
	using reaching = new Scope(signal).deadline(agentTimeoutMs, "the pod VM's forwarder to answer (PROXY_TIMEOUT)");
	const relay = await relays.open(
		relayTarget(id, request, context),
		podVms.addresses(vm, reaching.signal),
		reaching.signal,
	);
	yield {name: 'booting', prepared, vm, relay};
	stages.enter('bind the VM to its address');
	await podVms.bindAddress(vm, relay.address, signal);
	stages.enter('attach the network');
	await networks.attach(network, relay.address, signal);
	stages.enter('record that it runs');
	await recordWriter.write({request, network, state: 'running', vm, address: relay.address});
	signal.throwIfAborted();
	yield {name: 'running', prepared, vm, relay};
}

function after(ms: number, work: () => void): Disposable {
	const timer = setTimeout(work, ms);
	return {
		[Symbol.dispose]() {
			clearTimeout(timer);
		},
	};
}

/**
 * The steps from 'created' to 'running', one after the other. Does not roll back: each state lists what a roll-back has
 * to remove.
 */
import {Scope} from '../core/lifetime.ts';
import {present} from '../core/present.ts';
import type {Prepared, StateOf} from './admission.ts';
import {guestFiles} from './guest-files.ts';
import {registeredVm, relayTarget} from './identities.ts';
import type {RecordWriter} from './record-writer.ts';
import type {SandboxId} from './ports.ts';
import type {StartProgress} from './start-progress.ts';
import type {SandboxContext} from './context.ts';

/**
 * A VM that runs keeps its start permit for this time, unless it answers earlier. A guest that has not booted in this
 * time usually never does.
 */
const bootTurnMs = 30_000;

/** @returns the states after 'starting', each as soon as it is reached; the last is 'running' */
export async function* bringUp(
	id: SandboxId,
	prepared: Prepared,
	context: SandboxContext,
	recordWriter: RecordWriter,
	progress: StartProgress,
	signal: AbortSignal,
): AsyncGenerator<StateOf<'booting' | 'running'>, void> {
	const {podVms, networks, relays, cluster, starts, hasScratchSpace, agentTimeoutMs} = context;
	const {request, network, tls} = prepared;
	const {stages} = progress;
	stages.enter('get a start permit');
	// Namespaces take turns, so that one with many starts does not delay the others.
	using turn = await starts.acquire(signal, request.pod.namespace);
	stages.enter('register the VM with the cluster');
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
			...present({image: request.image}),
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
	// A booting guest loads the host. A guest that never boots must not keep the permit until its timeout.
	using _boot = after(context.bootTurnMs ?? bootTurnMs, () => turn[Symbol.dispose]());
	using reaching = new Scope(signal).deadline(agentTimeoutMs, "the pod VM's forwarder to answer", 'PROXY_TIMEOUT');
	const relay = await relays.open(
		{...relayTarget(id, request, context), onProgress: progress.dialled},
		progress.noting(podVms.addresses(vm, reaching.signal)),
		reaching.signal,
	);
	yield {name: 'booting', prepared, vm, relay};
	stages.enter('bind the VM to its address');
	await podVms.bindAddress(vm, relay.address, signal);
	stages.enter('attach the network');
	await networks.attach(network, relay.address, signal);
	stages.enter('record the running VM');
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

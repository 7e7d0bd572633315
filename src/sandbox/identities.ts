/** The names of a sandbox for the shim, the relay, the cluster and observers. Pure. */
import type {StateOf} from './admission.ts';
import type {RunningVm, SandboxEvent, SandboxNames} from './events.ts';
import type {PodRequest} from './pod-request.ts';
import type {RegisteredVm, RelayTarget, SandboxId} from './ports.ts';
import type {SandboxContext} from './context.ts';

export function agentSocketPath(id: SandboxId, {podsDir}: Pick<SandboxContext, 'podsDir'>): string {
	return `${podsDir}/${id}/agent.ttrpc`;
}

export function relayTarget(
	id: SandboxId,
	{instanceName}: PodRequest,
	context: Pick<SandboxContext, 'podsDir'>,
): RelayTarget {
	return {sandboxId: id, instanceName, socketPath: agentSocketPath(id, context)};
}

export function registeredVm(id: SandboxId, {instanceName, pod}: PodRequest): RegisteredVm {
	return {sandboxId: id, instanceName, pod};
}

/** For observers: the resources of a sandbox and their sources. */
export function createdEvent(
	sandbox: SandboxNames,
	{prepared: {request, network}}: StateOf<'created'>,
): SandboxEvent & {readonly kind: 'sandbox-created'} {
	const {vcpus, vcpusFrom, memoryMib, memoryFrom, initdata} = request;
	return {
		kind: 'sandbox-created',
		sandbox,
		size: {vcpus, vcpusFrom, memoryMib, memoryFrom},
		initdata: initdata?.digest,
		vni: network.vxlanId,
		netns: network.netnsPath,
	};
}

/** For observers: names and addresses of a running VM. */
export function runningVm({prepared: {network}, vm, relay}: StateOf<'running'>): RunningVm {
	return {vmId: vm.uuid, address: relay.address, mac: vm.mac, vni: network.vxlanId};
}

/** By what names a sandbox is known: to the shim, the relay, the cluster, and in the log. Pure. */
import type {LogFields} from '../core/log.ts';
import type {StateOf} from './admission.ts';
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

/** For the log: what a sandbox was given, and why. */
export function createdNames({prepared: {request, network}}: StateOf<'created'>): LogFields {
	const {vcpus, vcpusFrom, memoryMib, memoryFrom, initdata} = request;
	const measured = initdata === undefined ? {} : {initdata: initdata.digest};
	return {vcpus, vcpusFrom, memoryMib, memoryFrom, ...measured, vni: network.vxlanId, netns: network.netnsPath};
}

/** For the log: where a VM that runs is found. */
export function runningNames({prepared: {network}, vm, relay}: StateOf<'running'>): LogFields {
	return {vmId: vm.uuid, address: relay.address, mac: vm.mac, vni: network.vxlanId};
}

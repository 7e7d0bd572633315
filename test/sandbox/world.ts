/** A registry over in-memory ports, with a hook before and after every call of a port: to fail it, to hold it, to count it. */
import type {ExecutionContext} from 'ava';
import {SandboxRegistry} from '../../src/sandbox/registry.ts';
import type {AgentRelays, PodNetworks, PodVms} from '../../src/sandbox/ports.ts';
import {InMemoryAgentRelays} from '../support/in-memory-agent-relays.ts';
import {InMemoryPodNetworks} from '../support/in-memory-pod-networks.ts';
import {InMemoryPodVms} from '../support/in-memory-pod-vms.ts';
import {recordingLog} from '../support/recording-log.ts';

export type PortCall = 'networks.reserve' | 'networks.attach' | 'networks.release' | 'relays.issue' | 'relays.open' | 'podVms.start' | 'podVms.delete';

/** May wait, or throw; the signal is the call's own. */
export type Hook = (call: PortCall, signal: AbortSignal) => Promise<void> | void;

export interface World {
	readonly registry: SandboxRegistry;
	readonly podVms: InMemoryPodVms;
	readonly networks: InMemoryPodNetworks;
	readonly relays: InMemoryAgentRelays;
	readonly log: ReturnType<typeof recordingLog>;
	/** Everything that exists anywhere, by name: nothing left means an empty list. */
	readonly left: () => Promise<string[]>;
}

export const never = new AbortController().signal;

export interface WorldOptions {
	readonly before?: Hook;
	readonly after?: Hook;
	readonly createTimeoutMs?: number;
	readonly startTimeoutMs?: number;
	readonly agentTimeoutMs?: number;
	readonly cleanupTimeoutMs?: number;
}

export function world(t: ExecutionContext, {before = () => undefined, after = () => undefined, createTimeoutMs = 60_000, startTimeoutMs = 60_000, agentTimeoutMs = 60_000, cleanupTimeoutMs = 5000}: WorldOptions = {}): World {
	const podVms = new InMemoryPodVms();
	const networks = new InMemoryPodNetworks();
	const relays = new InMemoryAgentRelays({anyAddress: true});
	const log = recordingLog();
	const hooked = async <T>(call: PortCall, signal: AbortSignal, work: () => Promise<T>): Promise<T> => {
		await before(call, signal);
		const result = await work();
		await after(call, signal);
		return result;
	};

	const hookedNetworks: PodNetworks = {
		reserve: async (id, netns, signal) => hooked('networks.reserve', signal, async () => networks.reserve(id, netns, signal)),
		attach: async (network, address, signal) => hooked('networks.attach', signal, async () => networks.attach(network, address, signal)),
		release: async (network, signal) => hooked('networks.release', signal, async () => networks.release(network, signal)),
	};
	const hookedVms: PodVms = {
		start: async (spec, signal) => hooked('podVms.start', signal, async () => podVms.start(spec, signal)),
		addresses: (vm, signal) => podVms.addresses(vm, signal),
		delete: async (id, signal) => hooked('podVms.delete', signal, async () => podVms.delete(id, signal)),
		list: async signal => podVms.list(signal),
	};
	const hookedRelays: AgentRelays = {
		issue: async (name, signal) => hooked('relays.issue', signal, async () => relays.issue(name, signal)),
		open: async (target, addresses, signal) => hooked('relays.open', signal, async () => relays.open(target, addresses, signal)),
		discard: async path => relays.discard(path),
	};
	const registry = new SandboxRegistry({
		podVms: hookedVms, networks: hookedNetworks, relays: hookedRelays,
		sizes: {vcpus: 2, maxVcpus: 8, memoryMib: 2048, minMemoryMib: 512, maxMemoryMib: 8192},
		podsDir: '/run/pods', createTimeoutMs, startTimeoutMs, agentTimeoutMs, cleanupTimeoutMs, removalRetryMs: [1, 4], log,
	});
	t.teardown(async () => registry[Symbol.asyncDispose]());
	return {
		registry, podVms, networks, relays, log,
		async left() {
			return [
				...(await podVms.list(never)).map(({name}) => `VM ${name}`),
				...[...networks.tunnels.keys()].map(vni => `VNI ${vni}`),
				...[...relays.served.keys()].map(path => `socket ${path}`),
			];
		},
	};
}

export function pod(id: string, name = 'web'): {id: string; annotations: Record<string, string>; netnsPath: string} {
	return {id, annotations: {'io.kubernetes.cri.sandbox-name': name, 'io.kubernetes.cri.sandbox-namespace': 'shop'}, netnsPath: `/run/netns/${name}`};
}

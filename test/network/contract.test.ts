/** Both implementations of `PodNetworks`: the kernel's, and the one that the domain's tests stand on. */
import test from 'ava';
import {podNetworksContract} from '../contract/pod-networks.ts';
import {InMemoryPodNetworks} from '../support/in-memory-pod-networks.ts';
import {World} from './world.ts';

podNetworksContract(test, 'in memory', async () => {
	const networks = new InMemoryPodNetworks();
	return {
		networks,
		addPod: async n => `/run/netns/pod-${n}`,
		removePod: async () => undefined,
		tunnel: async ({vxlanId}) => {
			const remote = networks.tunnels.get(vxlanId);
			return !networks.tunnels.has(vxlanId) ? 'none' : remote === undefined ? 'reserved' : {remote};
		},
		[Symbol.asyncDispose]: async () => undefined,
	};
});

podNetworksContract(test, 'kernel', async () => {
	const world = await World.create();
	const networks = world.networks();
	return {
		networks,
		addPod: async n => world.addPod('bridge', n),
		async removePod(n) {
			await world.sh(`ip netns del pod-${n}`);
		},
		tunnel: async ({netnsPath, vxlanId}) => world.tunnel(netnsPath, vxlanId),
		async [Symbol.asyncDispose]() {
			await networks[Symbol.asyncDispose]();
			await world[Symbol.asyncDispose]();
		},
	};
});

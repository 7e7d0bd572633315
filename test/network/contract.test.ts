/** Both implementations of `PodNetworks`: the kernel's, and the one that the domain's tests stand on. */
import test from 'ava';
import {podNetworksContract} from '../contract/pod-networks.ts';
import {InMemoryPodNetworks} from '../support/in-memory-pod-networks.ts';
import {NetworkTestbed} from './testbed.ts';

podNetworksContract(test, 'in memory', async () => {
	const networks = new InMemoryPodNetworks();
	return {
		networks,
		addPod: async n => `/run/netns/pod-${n}`,
		removePod: async n => void networks.presences.set(`/run/netns/pod-${n}`, 'gone'),
		async aliasOf(n) {
			networks.link(`/run/netns/pod-${n}`, `/run/netns/alias-${n}`);
			return `/run/netns/alias-${n}`;
		},
		replacePod: async n => networks.replace(`/run/netns/pod-${n}`),
		unmountPod: async n => void networks.presences.set(`/run/netns/pod-${n}`, 'unknown'),
		async hidePods() {
			for (let n = 2; n <= 250; n++) {
				networks.presences.set(`/run/netns/pod-${n}`, 'unknown');
			}
		},
		tunnel: async ({vxlanId}) => {
			const remote = networks.tunnels.get(vxlanId);
			return !networks.tunnels.has(vxlanId) ? 'none' : remote === undefined ? 'reserved' : {remote};
		},
		[Symbol.asyncDispose]: async () => undefined,
	};
});

podNetworksContract(test, 'kernel', async () => {
	const testbed = await NetworkTestbed.create();
	const networks = testbed.networks();
	return {
		networks,
		addPod: async n => testbed.addPod('bridge', n),
		async removePod(n) {
			await testbed.sh(`ip netns del pod-${n}`);
		},
		aliasOf: async n => testbed.netnsPath(`../netns/pod-${n}`),
		async replacePod(n) {
			// The new one first, or it would get the inode of the old one.
			await testbed.sh(
				`ip netns add other; umount /run/netns/pod-${n}; mount --bind /run/netns/other /run/netns/pod-${n}; ip netns del other`,
			);
			await testbed.sh(
				`ip link add eth0 netns pod-${n} type bridge; ip -n pod-${n} addr add 10.244.0.${n}/24 dev eth0`,
			);
		},
		async unmountPod(n) {
			await testbed.sh(`umount /run/netns/pod-${n}`);
		},
		async hidePods() {
			await testbed.sh('mount -t tmpfs tmpfs /run/netns');
		},
		tunnel: async ({netnsPath, vxlanId}) => testbed.tunnel(netnsPath, vxlanId),
		async [Symbol.asyncDispose]() {
			await networks[Symbol.asyncDispose]();
			await testbed[Symbol.asyncDispose]();
		},
	};
});

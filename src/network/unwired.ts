/**
 * A stand-in for the pod's network: VNIs from a counter, no tunnel. The VM boots and its agent answers; the pod's own address does not.
 */
import type {Logger} from '../log.ts';
import type {PodNetworks} from '../sandbox/ports.ts';

export function unwiredPodNetworks({vxlanMinId, vxlanPort}: {readonly vxlanMinId: number; readonly vxlanPort: number}, log: Logger): PodNetworks {
	let nextVni = vxlanMinId;
	return {
		async reserve(sandboxId, netnsPath, signal) {
			signal.throwIfAborted();
			const vxlanId = nextVni++;
			log.warn({sandboxId, netns: netnsPath, vni: vxlanId}, 'pod network is not wired: the pod has no connectivity');
			return {
				netnsPath, podIp: '169.254.255.1/32', podHwAddr: '02:00:00:00:00:01', interface: 'eth0', workerNodeIp: '169.254.255.2/32', tunnelType: 'vxlan',
				routes: [], neighbors: [], mtu: 1450, index: 0, vxlanPort, vxlanId, dedicated: false, externalNetViaPodVm: false,
			};
		},
		attach: async () => undefined,
		release: async () => undefined,
	};
}

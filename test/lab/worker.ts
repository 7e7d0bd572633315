/**
 * The worker node: a network namespace with a leg on the KVM host's bridge, and pods' namespaces behind a bridge of its own.
 * Knows nothing of libvirt.
 */
import type {Namespaces} from './namespaces.ts';
import {names, podSubnet, subnet} from './topology.ts';

/** Its leg waits for a bridge; `plug` puts it on. */
export async function createWorker(namespaces: Namespaces, signal: AbortSignal): Promise<void> {
	// The kernel tells of a new carrier at once only when a device and its peer have different numbers, else up to a second later
	// (net/core/link_watch.c): hence the index.
	await namespaces.exec('kvmhost', ['sh', '-euc', `
		ip netns add worker
		ip link add worker index 100 up type veth peer name eth0 netns worker
		ip -n worker -batch - <<-END
			link set lo up
			addr add ${subnet.worker}/${subnet.prefixLength} dev eth0
			link set eth0 up
			route add default via ${subnet.host}
			link add ${podSubnet.bridge} up type bridge
			addr add ${podSubnet.gateway}/${podSubnet.prefixLength} dev ${podSubnet.bridge}
		END
	`], signal);
}

export async function plug(namespaces: Namespaces, signal: AbortSignal): Promise<void> {
	await namespaces.exec('kvmhost', ['ip', 'link', 'set', 'worker', 'master', names.bridge], signal);
}

/** A pod's network as a CNI leaves it: `eth0` with an address and a default route. */
export interface PodNamespace extends AsyncDisposable {
	/** As the shim would say it in CreateVM. */
	readonly netnsPath: string;
	readonly podIp: string;
}

/** @param index from 2 to 254, of one pod at a time */
export async function createPodNamespace(namespaces: Namespaces, name: string, index: number, signal: AbortSignal): Promise<PodNamespace> {
	const podIp = podSubnet.address(index);
	await namespaces.exec('worker', ['sh', '-euc', `
		ip netns add ${name}
		ip link add veth${index} master ${podSubnet.bridge} up type veth peer name eth0 netns ${name}
		ip -n ${name} -batch - <<-END
			link set lo up
			addr add ${podIp}/${podSubnet.prefixLength} dev eth0
			link set eth0 up
			route add default via ${podSubnet.gateway}
		END
	`], signal);
	return {
		netnsPath: `/run/netns/${name}`,
		podIp,
		[Symbol.asyncDispose]: async () => {
			await namespaces.exec('worker', ['ip', 'netns', 'delete', name], AbortSignal.timeout(5000));
		},
	};
}

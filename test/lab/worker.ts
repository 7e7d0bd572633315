/**
 * The worker node: a network namespace that is connected to the bridge of the KVM host, and routes between the
 * namespaces of its pods. Does not know libvirt.
 */
import type {ChildProcess} from 'node:child_process';
import type {Namespaces, RunOptions} from './namespaces.ts';
import {names, podSubnets, subnet, type PodShape} from './topology.ts';

/** Creates it. `plug` connects its interface to a bridge. */
export async function createWorker(namespaces: Namespaces, signal: AbortSignal): Promise<void> {
	// The kernel reports a new carrier at once only if a device and its peer have different indexes, otherwise up to a
	// second later (net/core/link_watch.c). So this sets the index.
	await namespaces.exec(
		'kvmhost',
		[
			'sh',
			'-euc',
			`
		ip netns add worker
		ip link add worker index 100 up type veth peer name eth0 netns worker
		ip -n worker -batch - <<-END
			link set lo up
			addr add ${subnet.worker}/${subnet.prefixLength} dev eth0
			link set eth0 up
			route add default via ${subnet.host}
			link add ${podSubnets.bridge.bridge} up type bridge
			addr add ${podSubnets.bridge.gateway}/${podSubnets.bridge.prefixLength} dev ${podSubnets.bridge.bridge}
		END
		nsenter --net=/run/netns/worker sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
	`,
		],
		signal,
	);
}

export async function plug(namespaces: Namespaces, signal: AbortSignal): Promise<void> {
	await namespaces.exec('kvmhost', ['ip', 'link', 'set', 'worker', 'master', names.bridge], signal);
}

/** The network of a pod as a CNI plugin configures it: `eth0` with an address, routes, and the end on the worker. */
export interface PodNamespace extends AsyncDisposable {
	/** As the shim passes it in CreateVM. */
	readonly netnsPath: string;
	readonly podIp: string;
	readonly mac: string;
	/** Starts a program of this machine in the namespace. */
	run(argv: readonly string[], options?: RunOptions): ChildProcess;
}

/** @param index from 2 to 254; unique among the existing pods */
export async function createPodNamespace(
	namespaces: Namespaces,
	name: string,
	shape: PodShape,
	index: number,
	signal: AbortSignal,
): Promise<PodNamespace> {
	const podIp = `${podSubnets[shape].prefix}.${index}`;
	// Derived from the address, as in CNI plugins.
	const mac = ['0a', '58', ...podIp.split('.').map(part => Number(part).toString(16).padStart(2, '0'))].join(':');
	const {inPod, onWorker} = commands[shape](podIp, `veth${index}`);
	await namespaces.exec(
		'worker',
		[
			'sh',
			'-euc',
			`
		ip netns add ${name}
		ip link add veth${index} type veth peer name eth0 address ${mac} netns ${name}
		ip -n ${name} -batch - <<-END
			link set lo up
			link set eth0 up
			${inPod.join('\n')}
		END
		ip -batch - <<-END
			${onWorker.join('\n')}
		END
	`,
		],
		signal,
	);
	return {
		netnsPath: `/run/netns/${name}`,
		podIp,
		mac,
		run: (argv, options) => namespaces.run(name, argv, options),
		[Symbol.asyncDispose]: async () => {
			await namespaces.exec('worker', ['ip', 'netns', 'delete', name], AbortSignal.timeout(60_000));
		},
	};
}

/** Lines for `ip -batch`. */
interface Commands {
	readonly inPod: readonly string[];
	readonly onWorker: readonly string[];
}

const commands: Readonly<Record<PodShape, (podIp: string, device: string) => Commands>> = {
	bridge(podIp, device) {
		const {prefixLength, gateway, bridge} = podSubnets.bridge;
		return {
			inPod: [`addr add ${podIp}/${prefixLength} dev eth0`, `route add default via ${gateway}`],
			onWorker: [`link set ${device} master ${bridge} up`],
		};
	},
	calico(podIp, device) {
		const {prefixLength, gateway, gatewayMac} = podSubnets.calico;
		return {
			inPod: [
				`addr add ${podIp}/${prefixLength} dev eth0`,
				`route add default via ${gateway} dev eth0 onlink`,
				`neigh add ${gateway} lladdr ${gatewayMac} dev eth0 nud permanent`,
			],
			onWorker: [`link set ${device} address ${gatewayMac} up`, `route add ${podIp} dev ${device} scope link`],
		};
	},
	ptp(podIp, device) {
		const {prefix, prefixLength, gateway} = podSubnets.ptp;
		return {
			inPod: [
				`addr add ${podIp}/${prefixLength} dev eth0 noprefixroute`,
				`route add ${gateway} dev eth0 scope link src ${podIp}`,
				`route add ${prefix}.0/${prefixLength} via ${gateway} src ${podIp}`,
				`route add default via ${gateway}`,
			],
			onWorker: [
				`addr add ${gateway}/32 dev ${device}`,
				`link set ${device} up`,
				`route add ${podIp} dev ${device} scope link`,
			],
		};
	},
};

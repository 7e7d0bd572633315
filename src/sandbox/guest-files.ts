/**
 * What a pod VM is told at boot, as files for its cloud-init disk. Pure; knows JSON's field names, not YAML and not the
 * disk. Source: cloud-api-adaptor, pkg/podnetwork/tunneler (pod-network) and cmd/process-user-data (paths), v0.10 to
 * v0.22.
 */
import {Secret} from '../core/log.ts';
import type {Initdata} from './pod-request.ts';
import type {ForwarderTls, GuestFile, PodIdentity, PodNetwork} from './ports.ts';

/**
 * The forwarder's configuration: `apf.json` from v0.15 on, `daemon.json` up to v0.14. Each generation ignores the
 * other's.
 */
export const forwarderConfigPaths = ['/run/peerpod/apf.json', '/run/peerpod/daemon.json'] as const;

/** Registry credentials, for the agent's image pull. */
export const pullCredentialsPath = '/run/peerpod/auth.json';
/** Where the VM looks for what a pod's owner wants of it, as `Initdata` has it. */
const initdataPath = '/run/peerpod/initdata';
/** Its mere presence makes the VM set up scratch space (v0.15 and later). */
const scratchSpacePath = '/run/peerpod/scratch-space.marker';

export interface GuestConfiguration {
	readonly pod: PodIdentity;
	readonly network: PodNetwork;
	readonly tls: ForwarderTls;
	/** The content of `auth.json`; none, no file. */
	readonly pullCredentials?: Secret<string> | undefined;
	readonly initdata?: Initdata | undefined;
	readonly hasScratchSpace?: boolean;
}

export function guestFiles(configuration: GuestConfiguration): GuestFile[] {
	const {pullCredentials, initdata, hasScratchSpace} = configuration;
	const content = new Secret(`${JSON.stringify(forwarderConfig(configuration), undefined, 2)}\n`);
	return [
		...forwarderConfigPaths.map(path => ({path, content})),
		...(pullCredentials === undefined ? [] : [{path: pullCredentialsPath, content: pullCredentials}]),
		...(initdata === undefined ? [] : [{path: initdataPath, content: new Secret(initdata.content)}]),
		...(hasScratchSpace === true ? [{path: scratchSpacePath, content: new Secret('')}] : []),
	];
}

/** Go's encoding: what is empty is left out, except where the VM's parser wants the empty string. */
function forwarderConfig({pod, network, tls}: GuestConfiguration): unknown {
	return {
		'pod-network': podNetwork(network),
		'pod-namespace': pod.namespace,
		'pod-name': pod.name,
		'tls-server-key': tls.serverKey?.reveal(),
		'tls-server-cert': tls.serverCert,
		'tls-client-ca': tls.clientCa,
		'tls-min-version': tls.minVersion,
		'tls-cipher-suites': tls.cipherSuites,
	};
}

function podNetwork(network: PodNetwork): unknown {
	return {
		podip: network.podIp,
		'pod-hw-addr': network.podHwAddr,
		interface: network.interface,
		'worker-node-ip': network.workerNodeIp,
		'tunnel-type': network.tunnelType,
		routes: network.routes.map(({dst, gw, dev, protocol, scope}) => ({dst, gw, dev, protocol, scope})),
		neighbors: network.neighbors.map(({ip, hwAddr, dev, state}) => ({ip, 'hw-addr': hwAddr, dev, state})),
		mtu: network.mtu,
		index: network.index,
		'vxlan-port': network.vxlanPort,
		'vxlan-id': network.vxlanId,
		dedicated: network.dedicated,
		'external-net-via-pod-vm': network.externalNetViaPodVm,
	};
}

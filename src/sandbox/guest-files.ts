/**
 * The files that configure a pod VM at boot, for its cloud-init disk. Pure; knows the JSON fields, but neither YAML nor
 * the disk format. Source: cloud-api-adaptor, pkg/podnetwork/tunneler (pod-network) and cmd/process-user-data (paths),
 * v0.10 to v0.22.
 */
import {Secret} from '../core/log.ts';
import type {Initdata} from './pod-request.ts';
import type {ForwarderTls, GuestFile, PodIdentity, PodNetwork} from './ports.ts';

/**
 * Configuration of the forwarder: `apf.json` since v0.15, `daemon.json` up to v0.14. Each version ignores the other
 * file.
 */
export const forwarderConfigPaths = ['/run/peerpod/apf.json', '/run/peerpod/daemon.json'] as const;

/** Registry credentials for image pulls by the agent. */
export const pullCredentialsPath = '/run/peerpod/auth.json';
/** The initdata of the pod. */
const initdataPath = '/run/peerpod/initdata';
/** If this file exists, the VM sets up scratch space (v0.15 and later). */
const scratchSpacePath = '/run/peerpod/scratch-space.marker';

export interface GuestConfiguration {
	readonly pod: PodIdentity;
	readonly network: PodNetwork;
	readonly tls: ForwarderTls;
	/** The content of `auth.json`. Without it, there is no file. */
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

/** As Go encodes it: empty fields are omitted, unless the parser in the VM requires an empty string. */
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

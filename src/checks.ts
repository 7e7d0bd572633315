/**
 * The list of checks whether this node can run peer pods. It combines the probes of the adapters with the verdicts of
 * `check/`. The command `check` and the daemon run the same list.
 */
import {isIPv4} from 'node:net';
import {dirname, join} from 'node:path';
import {
	clockFinding,
	guestFinding,
	libvirtFinding,
	memoryFinding,
	podVmsFinding,
	secureExecutionFinding,
	sshFinding,
	type Demand,
} from './check/host-verdicts.ts';
import {
	guardFinding,
	networkFinding,
	networkProtectionFinding,
	programsFinding,
	routeFinding,
	unknownSubnetFinding,
	vxlanPortFinding,
} from './check/network-verdicts.ts';
import {directoryFinding, identityFinding} from './check/node-verdicts.ts';
import type {Check} from './check/run-checks.ts';
import {baseVolumeFinding, diskFinding, poolFinding} from './check/storage-verdicts.ts';
import type {Config} from './config/config.ts';
import {observeDirectory} from './journal/directory-probe.ts';
import type {LibvirtSession} from './libvirt/session.ts';
import {SshProbe} from './libvirt/transport/ssh-probe.ts';
import type {SshOptions} from './libvirt/transport/ssh-connection.ts';
import type {SshUri} from './libvirt/uri.ts';
import type {NetworkProbe} from './network/probe.ts';
import type {HostCapabilities} from './podvm/host-capabilities.ts';
import type {PodsDir} from './podvm/metadata.ts';
import {
	countRunningVms,
	observeBaseVolume,
	observeGuests,
	observeLibvirt,
	observeMemory,
	observeNetwork,
	observeNetworkProtection,
	observePodVms,
	observePool,
	observeSecureExecution,
	unfilteredVms,
} from './podvm/host-probe.ts';
import {observeIdentity} from './relay/identity-probe.ts';

export interface ChecksOptions {
	readonly config: Config;
	readonly session: LibvirtSession;
	/** Capabilities of the host of the session. */
	readonly capabilities: HostCapabilities;
	readonly network: NetworkProbe;
	readonly ssh: Omit<SshOptions, 'log'>;
	/** PODS_DIR of the daemon on this node. Without it, VMs of another daemon cannot be recognised. */
	readonly podsDir?: PodsDir;
	readonly now?: () => Date;
}

/** Can be run once. Disposing closes the ssh connection of the checks. */
export interface Checks extends Disposable {
	readonly list: readonly Check[];
}

/** After its start, libvirtd probes the capabilities of every QEMU binary once. */
const firstConnectionTimeoutMs = 20_000;
const capabilitiesTimeoutMs = 40_000;

/** For failures without a remedy. */
const usualRemedies: Readonly<Record<Check['subject'], string>> = {
	host: 'Check libvirtd (or virtqemud) on the KVM host with "systemctl status libvirtd" and "virsh list".',
	node: 'Check this node: its load, its kernel log and the objects that the text names.',
};

export function composeChecks({
	config,
	session,
	capabilities,
	network,
	ssh,
	podsDir,
	now = () => new Date(),
}: ChecksOptions): Checks {
	const {
		libvirtUri: uri,
		pool,
		baseVolume,
		network: networkName,
		vxlanPort,
		forwarderPort,
		hostInterface,
		customCa,
	} = config;
	const probe = uri.transport === 'ssh' ? new SshProbe(uri, ssh) : undefined;
	const demand = async (signal: AbortSignal): Promise<Demand> => ({
		vms: await vmsToCome(config, session, signal),
		memoryMib: config.memoryMib + (config.disableCvm ? 0 : config.swiotlbMib),
		rootDiskGib: config.rootDiskGib,
	});
	const list: readonly Check[] = [
		...(uri.transport === 'ssh' && probe !== undefined ? sshChecks(uri, probe) : localChecks),
		{
			name: 'libvirt',
			subject: 'host',
			needs: probe === undefined ? [] : ['ssh'],
			timeoutMs: firstConnectionTimeoutMs,
			run: async signal => libvirtFinding(await observeLibvirt(session, signal)),
		},
		{
			name: 'guests',
			subject: 'host',
			needs: ['libvirt'],
			timeoutMs: capabilitiesTimeoutMs,
			run: async signal => guestFinding(await observeGuests(capabilities, config.cpuset, signal)),
		},
		{
			name: 'secure-execution',
			subject: 'host',
			needs: ['guests'],
			run: async signal =>
				secureExecutionFinding(await observeSecureExecution(capabilities, signal), !config.disableCvm),
		},
		{
			name: 'memory',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal => memoryFinding(await observeMemory(session, signal), await demand(signal)),
		},
		{
			name: 'pool',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal => poolFinding(pool, await observePool(session, pool, signal)),
		},
		{
			name: 'base-volume',
			subject: 'host',
			needs: ['pool'],
			timeoutMs: firstConnectionTimeoutMs,
			run: async signal =>
				baseVolumeFinding(pool, baseVolume, await observeBaseVolume(session, pool, baseVolume, signal)),
		},
		{
			name: 'disk',
			subject: 'host',
			needs: ['pool'],
			run: async signal => diskFinding(await observePool(session, pool, signal), await demand(signal)),
		},
		{
			name: 'network',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal => networkFinding(networkName, await observeNetwork(session, networkName, signal)),
		},
		{
			name: 'network-protection',
			subject: 'host',
			needs: ['network'],
			run: async signal =>
				networkProtectionFinding(
					await observeNetworkProtection(session, config, signal),
					await unfilteredVms(session, {cluster: config.clusterId, node: config.nodeName}, signal),
				),
		},
		{
			name: 'pod-vms',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal =>
				podsDir === undefined
					? {
							status: 'skipped',
							text: 'the owner of the VMs is unknown: PODS_DIR of this node has no identity yet',
						}
					: podVmsFinding(
							await observePodVms(
								session,
								{cluster: config.clusterId, node: config.nodeName},
								podsDir,
								signal,
							),
						),
		},
		{
			name: 'programs',
			subject: 'node',
			run: async signal => programsFinding(await network.observePrograms(signal)),
		},
		{
			name: 'route',
			subject: 'node',
			needs: ['network', 'programs'],
			async run(signal) {
				if (hostInterface !== undefined) {
					await network.checkHostInterface(hostInterface, signal);
				}

				const {subnet, vmAddress} = await observeNetwork(session, networkName, signal);
				// If libvirt does not manage the addresses, assume that the VMs are on the subnet of the KVM host. A
				// host name is not resolved.
				const address = vmAddress ?? (uri.transport === 'ssh' && isIPv4(uri.host) ? uri.host : undefined);
				if (address === undefined) {
					return unknownSubnetFinding(networkName, hostInterface);
				}

				const wish = {
					towards: subnet ?? address,
					forwarderPort,
					vxlanPort,
					...(hostInterface === undefined ? {} : {hostInterface}),
				};
				return routeFinding(await network.observeRoute(address, signal), wish);
			},
		},
		{
			name: 'vxlan-port',
			subject: 'node',
			needs: ['programs'],
			run: async signal => vxlanPortFinding(vxlanPort, await network.observeVxlanPort(signal)),
		},
		{
			name: 'tunnel-guard',
			subject: 'node',
			needs: ['programs'],
			run: async signal => guardFinding(await network.observeGuard(signal)),
		},
		{
			name: 'socket-directory',
			subject: 'node',
			run: async () =>
				directoryFinding('REMOTE_HYPERVISOR_ENDPOINT', await observeDirectory(dirname(config.socketPath))),
		},
		{
			name: 'pods-directory',
			subject: 'node',
			run: async () => directoryFinding('PODS_DIR', await observeDirectory(config.podsDir)),
		},
		{
			name: 'tls-identity',
			subject: 'node',
			async run() {
				const files =
					customCa === undefined
						? undefined
						: {caCert: customCa.caFile, cert: customCa.certFile, key: customCa.keyFile};
				return identityFinding(await observeIdentity(join(dirname(config.socketPath), 'tls'), files, now()), {
					skipsVerification: config.tlsSkipVerify,
					now: now(),
				});
			},
		},
	];
	return {
		list: list.map(check => ({remedy: usualRemedies[check.subject], ...check})),
		[Symbol.dispose]: () => probe?.[Symbol.dispose](),
	};
}

function sshChecks({host, port}: SshUri, probe: SshProbe): readonly Check[] {
	return [
		{
			name: 'ssh',
			subject: 'host',
			remedy: `Check that the host in LIBVIRT_URI is correct and up, and that firewalls allow ${host} port ${port}.`,
			run: async signal => sshFinding(await probe.login(signal)),
		},
		{
			name: 'clock',
			subject: 'host',
			needs: ['ssh'],
			run: async signal => clockFinding(await probe.clockSkew(signal)),
		},
	];
}

const localChecks: readonly Check[] = [
	{name: 'ssh', subject: 'host', run: async () => ({status: 'skipped', text: 'LIBVIRT_URI names this machine'})},
	{name: 'clock', subject: 'host', run: async () => ({status: 'skipped', text: 'LIBVIRT_URI names this machine'})},
];

/** How many pod VMs this node may still start. Without a limit: one. */
async function vmsToCome(
	{limitPerNode, clusterId, nodeName}: Config,
	session: LibvirtSession,
	signal: AbortSignal,
): Promise<number> {
	return limitPerNode === undefined || limitPerNode < 0
		? 1
		: Math.max(0, limitPerNode - (await countRunningVms(session, clusterId, nodeName, signal)));
}

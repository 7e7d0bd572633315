/**
 * The list of checks whether this node can run peer pods. It combines the probes of the adapters with the verdicts of
 * `check/`. The command `check` and the daemon run the same list.
 */
import {dirname, join} from 'node:path';
import {present} from './core/present.ts';
import {
	clockFinding,
	guestFinding,
	libvirtFinding,
	memoryFinding,
	podVmsFinding,
	secureExecutionFinding,
	sshFinding,
	type Demand,
} from './check/host-findings.ts';
import {
	guardFinding,
	networkFinding,
	networkProtectionFinding,
	programsFinding,
	routeFinding,
	unknownSubnetFinding,
	vxlanPortFinding,
} from './check/network-findings.ts';
import {directoryFinding, identityFinding, relayProcessFinding} from './check/node-findings.ts';
import type {Check} from './check/run-checks.ts';
import {baseVolumeFinding, diskFinding, poolFinding} from './check/storage-findings.ts';
import type {Config} from './config/config.ts';
import {observeDirectory} from './journal/directory-probe.ts';
import type {NetworkProbe} from './network/probe.ts';
import type {PodsDir} from './podvm/metadata.ts';
import type {HostProbe} from './podvm/provider.ts';
import {observeIdentity} from './relay/identity-probe.ts';
import {observeRelayProcess} from './relay-process/relay-process-probe.ts';

export interface ChecksOptions {
	readonly config: Config;
	/** Owned by the checks. */
	readonly host: HostProbe & Disposable;
	readonly network: NetworkProbe;
	/** Of the daemon on this node. Without it, VMs of other daemons cannot be distinguished. */
	readonly podsDir?: PodsDir;
	readonly now?: () => Date;
}

/** May run once. Disposing disposes the probe of the host. */
export interface Checks extends Disposable {
	readonly list: readonly Check[];
}

/** After its start, libvirtd probes the capabilities of every QEMU binary once. */
const firstConnectionTimeoutMs = 20_000;
/**
 * Time limit for reading the capabilities: it may wait for those probes too, and reads the domain capabilities
 * afterwards.
 */
const capabilitiesTimeoutMs = 40_000;

/** For failures without a remedy. */
const usualRemedies: Readonly<Record<Check['subject'], string>> = {
	host: 'Check libvirtd (or virtqemud) on the KVM host with "systemctl status libvirtd" and "virsh list".',
	node: 'Check this node: its load, its kernel log and the objects that the text names.',
};

export function composeChecks({config, host, network, podsDir, now = () => new Date()}: ChecksOptions): Checks {
	const {pool, baseVolume, network: networkName, vxlanPort, forwarderPort, hostInterface, customCa} = config;
	const demand = async (signal: AbortSignal): Promise<Demand> => ({
		vms: await vmsToCome(config, host, signal),
		memoryMib: config.memoryMib + (config.confidential ? config.swiotlbMib : 0),
		rootDiskGib: config.rootDiskGib,
	});
	const list: readonly Check[] = [
		...(host.login === undefined ? localChecks : loginChecks(host.login)),
		{
			name: 'libvirt',
			subject: 'host',
			needs: host.login === undefined ? [] : ['ssh'],
			timeoutMs: firstConnectionTimeoutMs,
			run: async signal => libvirtFinding(await host.hypervisor(signal)),
		},
		{
			name: 'guests',
			subject: 'host',
			needs: ['libvirt'],
			timeoutMs: capabilitiesTimeoutMs,
			run: async signal => guestFinding(await host.guests(signal)),
		},
		{
			name: 'secure-execution',
			subject: 'host',
			needs: ['guests'],
			run: async signal => secureExecutionFinding(await host.secureExecution(signal), config.confidential),
		},
		{
			name: 'memory',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal => memoryFinding(await host.memory(signal), await demand(signal)),
		},
		{
			name: 'pool',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal => poolFinding(pool, await host.pool(signal)),
		},
		{
			name: 'base-volume',
			subject: 'host',
			needs: ['pool'],
			timeoutMs: firstConnectionTimeoutMs,
			run: async signal => baseVolumeFinding(pool, baseVolume, await host.baseVolume(signal)),
		},
		{
			name: 'disk',
			subject: 'host',
			needs: ['pool'],
			run: async signal => diskFinding(await host.pool(signal), await demand(signal)),
		},
		{
			name: 'network',
			subject: 'host',
			needs: ['libvirt'],
			run: async signal => networkFinding(networkName, await host.network(signal)),
		},
		{
			name: 'network-protection',
			subject: 'host',
			needs: ['network'],
			run: async signal =>
				networkProtectionFinding(await host.networkProtection(signal), await host.unfilteredVms(signal)),
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
					: podVmsFinding(await host.podVms(podsDir, signal)),
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

				const {subnet, vmAddress: address} = await host.network(signal);
				if (address === undefined) {
					return unknownSubnetFinding(networkName, hostInterface);
				}

				const wish = {
					towards: subnet ?? address,
					forwarderPort,
					vxlanPort,
					...present({hostInterface}),
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
			name: 'relay-process',
			subject: 'node',
			run: async signal =>
				relayProcessFinding(await observeRelayProcess(config.relayProcess, config.socketPath, signal)),
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
		[Symbol.dispose]: () => host[Symbol.dispose](),
	};
}

function loginChecks(login: NonNullable<HostProbe['login']>): readonly Check[] {
	return [
		{
			name: 'ssh',
			subject: 'host',
			remedy: `Check that the host in LIBVIRT_URI is correct and up, and that firewalls allow ${login.host} port ${login.port}.`,
			run: async signal => sshFinding(await login.observe(signal)),
		},
		{
			name: 'clock',
			subject: 'host',
			needs: ['ssh'],
			run: async signal => clockFinding(await login.clockSkew(signal)),
		},
	];
}

const localChecks: readonly Check[] = [
	{name: 'ssh', subject: 'host', run: async () => ({status: 'skipped', text: 'LIBVIRT_URI names this machine'})},
	{name: 'clock', subject: 'host', run: async () => ({status: 'skipped', text: 'LIBVIRT_URI names this machine'})},
];

/** The number of pod VMs that this node may still start; 1 if there is no limit. */
async function vmsToCome({limitPerNode}: Config, host: HostProbe, signal: AbortSignal): Promise<number> {
	return limitPerNode === undefined || limitPerNode === 'unlimited'
		? 1
		: Math.max(0, limitPerNode - (await host.countRunningVms(signal)));
}

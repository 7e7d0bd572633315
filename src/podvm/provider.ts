/**
 * The parts of the hypervisor that the daemon, the checks and the controller need, created from the configuration.
 * Another hypervisor is another implementation of `Provider`: the daemon and the checks know neither the session of
 * libvirt nor ssh.
 */
import {isIPv4} from 'node:net';
import type {
	GuestObservation,
	LibvirtObservation,
	MemoryObservation,
	NetworkObservation,
	NetworkProtectionObservation,
	PodVmsObservation,
	PoolObservation,
	SecureExecutionObservation,
	SshObservation,
	VolumeObservation,
} from '../check/observations.ts';
import type {Logger} from '../core/log.ts';
import type {Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import type {SessionEvent} from '../libvirt/session-events.ts';
import type {LibvirtSessionOptions} from '../libvirt/session-options.ts';
import {LibvirtSession} from '../libvirt/session.ts';
import {openPipe} from '../libvirt/transport/open-pipe.ts';
import {SshProbe} from '../libvirt/transport/ssh-probe.ts';
import type {LibvirtUri} from '../libvirt/uri.ts';
import type {PodVms} from '../sandbox/ports.ts';
import {deleteAbandonedVm, type AbandonedVm} from './abandoned-vms.ts';
import {HostCapabilities} from './host-capabilities.ts';
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
} from './host-probe.ts';
import type {PoolEvent} from './events.ts';
import type {PodVmInspection} from './inspection.ts';
import type {PodsDir} from './metadata.ts';
import {networkAddress} from './network-address.ts';
import {createPodVms} from './pod-vms.ts';
import {watchPool} from './pool-watch.ts';
import {withSetting} from './start-failure.ts';

type SshProbeOptions = ConstructorParameters<typeof SshProbe>[1];

/** The settings with these names; `Config` contains all of them. */
export interface ProviderConfig {
	readonly libvirtUri: LibvirtUri;
	readonly pool: string;
	readonly network: string;
	readonly netFilter: string;
	readonly netIsolation: 'auto' | 'on' | 'off';
	readonly baseVolume: string;
	readonly rootDiskGib: number;
	readonly allowedImages?: readonly string[] | undefined;
	readonly cpuset?: string | undefined;
	readonly confidential: boolean;
	readonly swiotlbMib: number;
	readonly clusterId: string;
	readonly nodeName: string;
}

export interface ProviderContext {
	/** Whose `.ssh` holds keys and known_hosts. */
	readonly home: string;
	/** The user on the KVM host when the URI names none. */
	readonly user: string;
	readonly uid?: number | undefined;
	/** SSH_AUTH_SOCK. */
	readonly sshAgentSocket: string | undefined;
	readonly observer: Observer<SessionEvent>;
	readonly log: Logger;
	/** Time limits of connections and calls, if not the defaults. */
	readonly timings?: SessionTimings;
}

export type SessionTimings = Pick<
	LibvirtSessionOptions,
	'callTimeoutMs' | 'connectTimeoutMs' | 'silenceTimeoutMs' | 'streamTimeoutMs' | 'reconnectMs'
>;

/** Reads the state of the host for the checks: each method reads it again. */
export interface HostProbe {
	/** Absent if the hypervisor is on this machine. The connection stays open for `clockSkew`. */
	readonly login?: {
		/** For remedies. */
		readonly host: string;
		readonly port: number;
		observe(signal: AbortSignal): Promise<SshObservation>;
		/** Seconds by which the clock of the host is ahead, negative if behind; undefined if unknown. */
		clockSkew(signal: AbortSignal): Promise<number | undefined>;
	};
	hypervisor(signal: AbortSignal): Promise<LibvirtObservation>;
	guests(signal: AbortSignal): Promise<GuestObservation>;
	secureExecution(signal: AbortSignal): Promise<SecureExecutionObservation>;
	memory(signal: AbortSignal): Promise<MemoryObservation>;
	pool(signal: AbortSignal): Promise<PoolObservation>;
	baseVolume(signal: AbortSignal): Promise<VolumeObservation>;
	network(signal: AbortSignal): Promise<NetworkObservation>;
	networkProtection(signal: AbortSignal): Promise<NetworkProtectionObservation>;
	/** Names of this node's VMs that run without a network filter. */
	unfilteredVms(signal: AbortSignal): Promise<readonly string[]>;
	podVms(podsDir: PodsDir, signal: AbortSignal): Promise<PodVmsObservation>;
	countRunningVms(signal: AbortSignal): Promise<number>;
}

/** Disposing ends all connections. */
export interface Provider extends AsyncDisposable {
	/** Connects; otherwise the first call connects. Retries after a failure. */
	connect(signal: AbortSignal): Promise<unknown>;
	/** Calls the listener each time the host is reached again: events in between are lost. */
	onConnected(listener: () => void): Disposable;
	/** @param podsDir stored in each VM, to distinguish it from VMs of a daemon with another PODS_DIR */
	podVms(podsDir: PodsDir): PodVms & PodVmInspection;
	/** An address in the subnet of the VMs, or the host name if the hypervisor does not manage the addresses. */
	vmAddress(signal: AbortSignal): Promise<string>;
	/** Observes the space of the pool at intervals until the result is disposed. */
	watchPool(observer: Observer<PoolEvent>): AsyncDisposable;
	/** The caller must dispose it. */
	openProbe(): HostProbe & Disposable;
}

/** Opens nothing yet. */
export function openLibvirtProvider(config: ProviderConfig, context: ProviderContext): Provider {
	const {libvirtUri: uri, network, clusterId: cluster, nodeName: node} = config;
	const {log} = context;
	const session = openSession(uri, context);
	const capabilities = new HostCapabilities(session);
	const named = namingSettings(config);
	return {
		connect: async signal => session.connect(signal),
		onConnected: listener =>
			session.onState(({name}) => {
				if (name === 'connected') {
					listener();
				}
			}),
		podVms: podsDir =>
			createPodVms({
				session,
				capabilities,
				pool: config.pool,
				network,
				netFilter: config.netFilter,
				netIsolation: config.netIsolation,
				volumeName: config.baseVolume,
				rootDiskSizeGib: config.rootDiskGib,
				...present({allowedImages: config.allowedImages, cpuset: config.cpuset}),
				// If a confidential VM is requested and not possible, the start is refused; it never gets an ordinary
				// VM.
				...(config.confidential ? {launchSecurity: 's390-pv', swiotlbMib: config.swiotlbMib} : {}),
				cluster,
				node,
				podsDir,
				log,
			}),
		vmAddress: async signal =>
			(await named(networkAddress(session, network, signal))) ?? (uri.transport === 'ssh' ? uri.host : ''),
		watchPool: observer => watchPool(session, config.pool, observer),
		openProbe: () => openProbe(config, session, capabilities, sshOptions(context)),
		[Symbol.asyncDispose]: async () => session[Symbol.asyncDispose](),
	};
}

/** Deletes VMs that have no daemon, for the controller. Disposing ends its connection. */
export interface AbandonedVms extends AsyncDisposable {
	/** @returns whether there was one */
	delete(vm: AbandonedVm, signal: AbortSignal): Promise<boolean>;
}

/** Opens nothing yet. */
export function openAbandonedVms(
	{libvirtUri, clusterId}: Pick<ProviderConfig, 'libvirtUri' | 'clusterId'>,
	context: ProviderContext,
): AbandonedVms {
	const session = openSession(libvirtUri, context);
	return {
		delete: async (vm, signal) => deleteAbandonedVm({session, cluster: clusterId, log: context.log}, vm, signal),
		[Symbol.asyncDispose]: async () => session[Symbol.asyncDispose](),
	};
}

function openSession(uri: LibvirtUri, context: ProviderContext): LibvirtSession {
	const {observer, log, timings} = context;
	return new LibvirtSession({
		openPipe: openPipe(uri, {log, ...sshOptions(context)}),
		uri: uri.remoteUri,
		observer,
		...timings,
	});
}

function sshOptions({home, user, uid, sshAgentSocket, timings}: ProviderContext): SshProbeOptions {
	return {home, user, uid, agentSocket: sshAgentSocket, ...timings};
}

/** Errors about a pool or network that does not exist name its setting. */
function namingSettings(objects: Pick<ProviderConfig, 'pool' | 'network'>): <T>(observing: Promise<T>) => Promise<T> {
	return async observing =>
		observing.catch((error: unknown) => {
			throw withSetting(error, objects);
		});
}

function openProbe(
	config: ProviderConfig,
	session: LibvirtSession,
	capabilities: HostCapabilities,
	ssh: SshProbeOptions,
): HostProbe & Disposable {
	const {libvirtUri: uri, pool, network, clusterId, nodeName} = config;
	const owner = {cluster: clusterId, node: nodeName};
	const named = namingSettings(config);
	const sshProbe = uri.transport === 'ssh' ? new SshProbe(uri, ssh) : undefined;
	return {
		...(uri.transport === 'ssh' && sshProbe !== undefined
			? {
					login: {
						host: uri.host,
						port: uri.port,
						observe: async signal => sshProbe.login(signal),
						clockSkew: async signal => sshProbe.clockSkew(signal),
					},
				}
			: {}),
		hypervisor: async signal => observeLibvirt(session, signal),
		guests: async signal => observeGuests(capabilities, config.cpuset, signal),
		secureExecution: async signal => observeSecureExecution(capabilities, signal),
		memory: async signal => observeMemory(session, signal),
		pool: async signal => named(observePool(session, pool, signal)),
		baseVolume: async signal => named(observeBaseVolume(session, pool, config.baseVolume, signal)),
		async network(signal) {
			const seen = await named(observeNetwork(session, network, signal));
			// If libvirt does not manage the addresses, VMs are assumed in the subnet of the KVM host; a host name is
			// not resolved.
			const vmAddress = seen.vmAddress ?? (uri.transport === 'ssh' && isIPv4(uri.host) ? uri.host : undefined);
			return vmAddress === undefined ? seen : {...seen, vmAddress};
		},
		networkProtection: async signal => named(observeNetworkProtection(session, config, signal)),
		unfilteredVms: async signal => unfilteredVms(session, owner, signal),
		podVms: async (podsDir, signal) => observePodVms(session, owner, podsDir, signal),
		countRunningVms: async signal => countRunningVms(session, clusterId, nodeName, signal),
		[Symbol.dispose]: () => sshProbe?.[Symbol.dispose](),
	};
}

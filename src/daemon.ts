/** The composition root: creates the parts of the daemon in order, in one stack. Contains no policy and no protocol. */
import {dirname, join} from 'node:path';
import {serveApi} from './api/server.ts';
import {composeChecks} from './checks.ts';
import {KeyedMutex} from './core/concurrency/keyed-mutex.ts';
import {retry} from './core/concurrency/retry.ts';
import {Semaphore} from './core/concurrency/semaphore.ts';
import type {Config} from './config/config.ts';
import {parseInitdata} from './initdata/initdata.ts';
import {serveProbes} from './health/probes.ts';
import {levelOfAttempt, type Logger, type RootLogger} from './core/log.ts';
import {metricsIfWanted} from './metrics/on-demand.ts';
import {allOf, type Observer} from './core/observer.ts';
import {present} from './core/present.ts';
import type {RecentLines} from './core/recent-lines.ts';
import {answers} from './core/unix-listener.ts';
import {createPodNetworks} from './network/pod-networks.ts';
import {openLibvirtProvider} from './podvm/provider.ts';
import {openIdentity} from './relay/identity.ts';
import type {RelayEvent} from './relay/events.ts';
import {createAgentRelays} from './relay/relay.ts';
import type {RemoteRelays} from './relay-process/remote-relays.ts';
import {relaySocketBeside} from './relay-process/socket-paths.ts';
import {FileRecords} from './journal/file-records.ts';
import type {KubernetesCluster} from './kubernetes/cluster.ts';
import {aliveFor} from './journal/unlocked-predecessor.ts';
import {lockPodsDir} from './journal/daemon-lock.ts';
import {identifyPodsDir} from './journal/pods-dir.ts';
import type {AdaptorEvent} from './observers/event.ts';
import {logObserver} from './observers/log-observer.ts';
import {podEventObserver} from './observers/pod-events.ts';
import {SandboxFactsObserver} from './observers/sandbox-facts.ts';
import {noCluster} from './sandbox/no-cluster.ts';
import type {AgentRelays, OtherDaemons, PodVms} from './sandbox/ports.ts';
import {SandboxRegistry} from './sandbox/registry.ts';
import {serveStatus} from './status/server.ts';
import {statusSocketBeside} from './status/socket-path.ts';
import {checkAndLog, checkInBackground, refuseFailures} from './start-checks.ts';

/** What the parts need to know about the process. */
export interface ProcessContext {
	/** Whose `.ssh` holds keys and known_hosts. */
	readonly home: string;
	/** The user on the KVM host when the URI names none. */
	readonly user: string;
	/** SSH_AUTH_SOCK. */
	readonly sshAgentSocket: string | undefined;
	/** The user id of the process. */
	readonly uid?: number | undefined;
	/** KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT; absent outside of a cluster. */
	readonly apiServer?: {readonly host: string; readonly port: number};
	/** Directory of the token of the pod, if not the usual one of Kubernetes. */
	readonly serviceAccountDirectory?: string;
	/** Of this program. */
	readonly version: string;
	/** The newest lines of the log. */
	readonly recentLines: RecentLines;
}

/**
 * Kubernetes kills a container 30 s after SIGTERM. A shutdown takes about 18 s at most, also if the KVM host does not
 * answer: running calls have 8 s to finish, then 4 s to be rolled back, and the cluster and the libvirt session have 3
 * s each to close. The next daemon rolls back the rest.
 */
const drainTimeoutMs = 8000;
/** Part of the shutdown above: the roll-back of unfinished starts. */
const closeTimeoutMs = 4000;
/** The shim of kata sets no deadline for CreateVM. */
const createTimeoutMs = 30_000;
/** Deleting a VM takes a second. A host that needs longer than this is stuck, and the deletion is retried. */
const cleanupTimeoutMs = 60_000;
const removalRetryMs = [500, 30_000] as const;
/**
 * The documentation promises that a VM without a pod is removed within 90 s: one round finds it, the next one confirms
 * it.
 */
const reconcileIntervalMs = 60_000;

/**
 * Serves when this resolves; the KVM host may still be unreachable. Disposing accepts no new calls, waits for running
 * ones, rolls back unfinished starts, and does not change running pod VMs: the next daemon resumes them from their
 * records.
 */
export async function startDaemon(
	config: Config,
	processContext: ProcessContext,
	log: RootLogger,
	signal: AbortSignal,
): Promise<AsyncDisposable> {
	await using parts = new AsyncDisposableStack();
	const {home, user, uid, sshAgentSocket} = processContext;
	// Acquired first, so that it is released last: until then this daemon counts as running.
	const lock = parts.use(await lockPodsDir(config.podsDir, log));
	const podsDir = await identifyPodsDir(config.podsDir, config.nodeName);
	const facts = new SandboxFactsObserver();
	const logged = together(log, logObserver(log), facts);
	const remote = await relayProcess(config, logged, log, signal);
	if (remote !== undefined) {
		parts.use(remote);
	}

	const {version} = processContext;
	const metrics = parts.use(
		await metricsIfWanted(
			{at: config.metricsAt, setting: 'METRICS_PORT', component: 'libvirt', version, log},
			async registry =>
				// A relay process has the metrics of its relays.
				(await import('./observers/metrics-observer.ts')).daemonMetrics(registry, {
					withRelays: remote === undefined,
				}),
		),
	);
	const observer = metrics === undefined ? logged : together(log, logged, metrics.observer);
	const relays = remote ?? (await relaysInProcess(config, observer, log));

	const provider = parts.use(openLibvirtProvider(config, {home, user, uid, sshAgentSocket, observer, log}));
	// Connects now, not at the first StartVM, so that an unreachable host is reported at once. It retries.
	provider.connect(signal).catch(() => undefined);
	const podVms = provider.podVms(podsDir);
	const networks = parts.use(
		createPodNetworks({
			underlay:
				config.hostInterface === undefined
					? {vmAddress: async limit => provider.vmAddress(limit)}
					: {hostInterface: config.hostInterface},
			vxlanPort: config.vxlanPort,
			vxlanMinId: config.vxlanMinId,
			podSubnetCidrs: config.podSubnetCidrs ?? [],
			externalNetViaPodVm: config.externalNetworkViaPodVm,
			observer,
			log,
		}),
	);
	await networks.check(signal);

	const checks = composeChecks({config, host: provider.openProbe(), network: networks.probe, podsDir});
	if (config.cloudConfigVerify) {
		refuseFailures(await checkAndLog(checks, log, signal));
	}

	const cluster = parts.use(await kubernetesCluster(config, processContext, podVms, log, signal));
	const everyone = together(log, observer, podEventObserver(cluster ?? noCluster));
	const configuredLimit = config.limitPerNode === 'unlimited' ? undefined : config.limitPerNode;
	const records = new FileRecords(config.podsDir, log);
	const sandboxes = parts.use(
		new SandboxRegistry({
			podVms,
			networks,
			relays,
			cluster: cluster ?? noCluster,
			records,
			starts: new Semaphore(config.maxConcurrentStarts),
			mutex: new KeyedMutex(),
			maxSandboxes: () =>
				config.enforceLimit ? (cluster === undefined ? configuredLimit : cluster.limit) : undefined,
			policy: {
				sizes: {
					vcpus: config.vcpus,
					minVcpus: config.minVcpus,
					maxVcpus: config.maxVcpus,
					memoryMib: config.memoryMib,
					minMemoryMib: config.minMemoryMib,
					maxMemoryMib: config.maxMemoryMib,
				},
				initdata: {
					parse: parseInitdata,
					...present({configured: config.initdata}),
				},
			},
			hasScratchSpace: config.enableScratchSpace,
			podsDir: config.podsDir,
			createTimeoutMs,
			startTimeoutMs: config.startTimeoutMs,
			agentTimeoutMs: config.proxyTimeoutMs,
			cleanupTimeoutMs,
			removalRetryMs,
			closeTimeoutMs,
			orphanGraceMs: config.orphanGraceMs,
			reconcileIntervalMs: Math.min(reconcileIntervalMs, config.orphanGraceMs),
			observer: everyone,
		}),
	);
	const others = Promise.withResolvers<OtherDaemons>();
	others.promise.catch(() => undefined);
	await sandboxes.recover(others.promise);
	// At this point, the tunnels of running sandboxes are known, and no call is served yet.
	await networks.guard(signal);
	// Events during a lost connection were not seen.
	parts.use(provider.onConnected(() => sandboxes.reconcileSoon()));
	const api = parts.use(
		await serveApi(
			{
				path: remote === undefined ? config.socketPath : await remote.freeDaemonSocket(signal),
				publicPath: config.socketPath,
				sandboxes,
				drainTimeoutMs,
				onBoundAgain: () => sandboxes.reconcileSoon(),
				observer,
				log,
			},
			signal,
		),
	);
	if (remote !== undefined) {
		remote.onChange = () => sandboxes.reconcileSoon();
		parts.use(await remote.register(api.path, signal));
	}

	parts.use(
		await serveStatus(
			statusSocketBeside(config.socketPath),
			{
				node: config.nodeName,
				version: processContext.version,
				defaultImage: config.baseVolume,
				confidential: config.confidential,
				sandboxes: {views: () => sandboxes.views(), stop: async (id, limit) => sandboxes.stop(id, limit)},
				facts,
				records,
				vms: podVms,
				describeNetwork: async (network, limit) => networks.describe(network, limit),
				recentLines: processContext.recentLines,
				log,
			},
			log,
			signal,
		),
	);
	if (metrics !== undefined) {
		parts.use(provider.watchPool(observer));
	}

	if (config.probePort !== undefined) {
		parts.use(serveProbes({port: config.probePort, assertHealthy: async limit => api.assertReachable(limit), log}));
	}

	// A daemon of an earlier version has no lock: it counts as running for the time that a start can take.
	others.resolve(
		api.tookOver && !lock.hasPredecessor()
			? parts.use(aliveFor(config.startTimeoutMs + drainTimeoutMs + closeTimeoutMs, lock))
			: lock,
	);
	log.info(
		{
			path: config.socketPath,
			uri: config.libvirtUri.text,
			pool: config.pool,
			volume: config.baseVolume,
			node: config.nodeName,
			relay: remote === undefined ? 'this process' : 'relay process',
		},
		'ready',
	);
	if (!config.cloudConfigVerify) {
		parts.use(checkInBackground(checks, log));
	}

	return parts.move();
}

function together(log: Logger, ...observers: ReadonlyArray<Observer<AdaptorEvent>>): Observer<AdaptorEvent> {
	return allOf(observers, error => log.error({err: error}, 'an observer failed'));
}

/** Serves agent sockets in this process: they end with it. */
async function relaysInProcess(config: Config, observer: Observer<RelayEvent>, log: Logger): Promise<AgentRelays> {
	const identity = await openIdentity({
		directory: join(dirname(config.socketPath), 'tls'),
		...(config.customCa === undefined
			? {}
			: {files: {caCert: config.customCa.caFile, cert: config.customCa.certFile, key: config.customCa.keyFile}}),
		log,
	});
	return createAgentRelays({
		identity,
		forwarderPort: config.forwarderPort,
		tls: {
			...present({minVersion: config.tlsMinVersion, cipherSuites: config.tlsCipherSuites}),
			skipVerify: config.tlsSkipVerify,
		},
		observer,
		log,
	});
}

/**
 * The relay process of this node, if the daemon is to use it. Its modules are loaded only in that case.
 * @returns undefined if the daemon serves the sockets itself
 * @throws the reason of the signal
 */
async function relayProcess(
	{relayProcess: use, socketPath}: Config,
	observer: Observer<RelayEvent>,
	log: Logger,
	signal: AbortSignal,
): Promise<RemoteRelays | undefined> {
	const path = relaySocketBeside(socketPath);
	if (use === 'off' || (use === 'auto' && !(await answers(path, signal)))) {
		return undefined;
	}

	const {RemoteRelays} = await import('./relay-process/remote-relays.ts');
	return retry(
		async () => RemoteRelays.connect({relaySocket: path, observer, log}, signal),
		{
			backOff: [200, 5000],
			onFailure: (error, {attempt, retryInMs}) =>
				log[levelOfAttempt(attempt)]({path, err: error, attempt, retryInMs}, 'waiting for the relay process'),
		},
		signal,
	);
}

/** Loaded only in a cluster. If the pod cannot reach the API server, the daemon works without it. */
async function kubernetesCluster(
	config: Config,
	{apiServer, serviceAccountDirectory}: ProcessContext,
	podVms: PodVms,
	log: Logger,
	stopping: AbortSignal,
): Promise<KubernetesCluster | undefined> {
	if (apiServer === undefined) {
		return undefined;
	}

	const {joinCluster} = await import('./kubernetes/cluster.ts');
	try {
		return await joinCluster({
			server: apiServer,
			...present({serviceAccountDirectory}),
			node: config.nodeName,
			cluster: config.clusterId,
			limitPerNode: config.limitPerNode,
			podUid: config.podUid,
			daemonSet: config.daemonSet,
			leftOverMs: Math.max(600_000, 2 * config.startTimeoutMs),
			vmNames: async signal => (await podVms.list(signal)).map(({name}) => name),
			stopping,
			log,
		});
	} catch (error) {
		log.warn({err: error}, 'could not join the cluster; pod VMs are not registered');
		return undefined;
	}
}

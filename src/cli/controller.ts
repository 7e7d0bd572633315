/**
 * `cloud-api-adaptor controller`: deletes the VMs of pods whose node is lost. One deployment per cluster; one replica
 * is active at a time. Connects two folders that do not know each other: kubernetes/ decides, podvm/ deletes.
 */
import {randomUUID} from 'node:crypto';
import {loadSettings} from '../config/config.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {serveProbes} from '../health/probes.ts';
import {KubernetesClient} from '../kubernetes/client.ts';
import {cleanUpAfterNodes} from '../kubernetes/controller.ts';
import {whileLeading} from '../kubernetes/leader.ts';
import {apiServerAddress, ServiceAccount} from '../kubernetes/service-account.ts';
import {createLogger} from '../core/log.ts';
import {logObserver} from '../observers/log-observer.ts';
import {openAbandonedVms} from '../podvm/provider.ts';
import {exitCode, type CommandContext} from './command.ts';
import {controllerSettings} from './controller-settings.ts';

export const leaseName = 'cloud-api-adaptor-controller';
/** Interval of rounds: far below the grace period, but long enough to cause little load on the API server. */
const usualIntervalMs = 15_000;

/** Runs until the signal aborts. @throws ConfigError, and AdaptorError 'failed-precondition' outside of a cluster */
export async function controller(
	{env, flags, host, processContext, version, logTo, onLogger}: CommandContext,
	signal: AbortSignal,
): Promise<number> {
	const {
		libvirtUri: uri,
		clusterId: cluster,
		daemonSelector,
		abandonedGraceMs: graceMs,
		probePort,
		logLevel,
		logFormat,
	} = loadSettings(controllerSettings, env, host, flags);
	const server = apiServerAddress(env);
	if (server === undefined) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Not in a cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set',
			remedy: 'Run the controller as a pod of the cluster.',
		});
	}

	const log = await createLogger({level: logLevel, format: logFormat, destination: logTo});
	onLogger(log);
	log.info({version}, 'starting');
	for (const warning of uri.warnings) {
		log.warn({reason: `LIBVIRT_URI: ${warning}`}, 'configuration warning');
	}

	// A replica that waits for leadership is healthy: the probe only tests the event loop.
	await using _probes = serveProbes({port: probePort, host: '0.0.0.0', assertHealthy: async () => undefined, log});
	const account = new ServiceAccount(processContext.serviceAccountDirectory);
	const namespace = await account.namespace();
	using client = new KubernetesClient({server, account, log});
	const {home, user, uid, sshAgentSocket} = processContext;
	await using abandonedVms = openAbandonedVms(
		{libvirtUri: uri, clusterId: cluster},
		{home, user, uid, sshAgentSocket, observer: logObserver(log), log},
	);
	// Pods on the host network of one node have the same host name.
	const identity = `${host.hostname}_${randomUUID()}`;
	await whileLeading(
		{client, lease: {name: leaseName, namespace}, identity, log},
		async leading =>
			cleanUpAfterNodes(
				{
					client,
					namespace,
					daemonSelector,
					cluster,
					graceMs,
					intervalMs: Math.min(usualIntervalMs, graceMs),
					log,
					deleteVm: async (vm, limit) => abandonedVms.delete(vm, limit),
				},
				leading,
			),
		signal,
	);
	log.info({reason: toError(signal.reason).message}, 'stopping');
	return exitCode.ok;
}

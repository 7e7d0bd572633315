/** `cloud-api-adaptor relay`: runs the relay process. */
import {once} from 'node:events';
import {dirname, join} from 'node:path';
import {loadSettings} from '../config/config.ts';
import {toError} from '../core/errors.ts';
import {createLogger} from '../core/log.ts';
import {allOf} from '../core/observer.ts';
import {present} from '../core/present.ts';
import {serveProbes} from '../health/probes.ts';
import {metricsIfWanted} from '../metrics/on-demand.ts';
import {logObserver} from '../observers/log-observer.ts';
import {openIdentity} from '../relay/identity.ts';
import {createAgentRelays} from '../relay/relay.ts';
import {RelayProcess} from '../relay-process/relay-process.ts';
import {exitCode, type CommandContext} from './command.ts';
import {relaySettings} from './relay-settings.ts';

/**
 * Runs until the signal aborts, or until a newer relay process has taken over and the last pod has ended. If a newer
 * one has taken over, the first signal does not stop this process at once: it waits until its last pod has ended.
 * @throws ConfigError, or the error of a failed start
 */
export async function relay(
	{env, flags, host, version, logTo, onLogger}: CommandContext,
	signal: AbortSignal,
): Promise<number> {
	const config = loadSettings(relaySettings, env, host, flags);
	const log = await createLogger({level: config.logLevel, format: config.logFormat, destination: logTo});
	onLogger(log);
	log.info({version}, 'starting');
	const {socketPath, tlsMinVersion: minVersion, tlsCipherSuites: cipherSuites} = config;
	const identity = await openIdentity({
		directory: join(dirname(socketPath), 'tls'),
		files: present({caCert: config.caCertFile, cert: config.certFile, key: config.certKeyFile}),
		log,
	});
	await using parts = new AsyncDisposableStack();
	const metrics = parts.use(
		await metricsIfWanted(
			{at: config.metricsAt, setting: 'RELAY_METRICS_PORT', component: 'relay', version, log},
			async registry => (await import('../observers/metrics-observer.ts')).relayMetrics(registry),
		),
	);
	const logged = logObserver(log);
	const running = parts.use(
		await RelayProcess.start(
			{
				hypervisorSocket: socketPath,
				makeRelays: observer =>
					createAgentRelays({
						identity,
						forwarderPort: config.forwarderPort,
						tls: {...present({minVersion, cipherSuites}), skipVerify: config.tlsSkipVerify},
						observer,
						log,
					}),
				observer:
					metrics === undefined
						? logged
						: allOf([logged, metrics.observer], error => log.error({err: error}, 'an observer failed')),
				log,
			},
			signal,
		),
	);
	if (config.probePort !== undefined) {
		parts.use(
			serveProbes({port: config.probePort, assertHealthy: async limit => running.assertReachable(limit), log}),
		);
	}

	log.info({path: running.socketPath}, 'ready');
	const stopping = signal.aborted ? Promise.resolve() : once(signal, 'abort');
	await Promise.race([running.ended, stopping]);
	if (signal.aborted && (await running.isSuperseded())) {
		log.info({count: running.pods}, 'stopping when the last pod has ended; another signal stops at once');
		await running.ended;
	}

	log.info(
		{reason: signal.aborted ? toError(signal.reason).message : 'a newer relay process serves all pods'},
		'stopping',
	);
	return exitCode.ok;
}

/** `cloud-api-adaptor webhook`: the admission webhook, from its settings to the signal that ends it. */
import {once} from 'node:events';
import {loadSettings} from '../config.ts';
import {toError} from '../errors.ts';
import {createLogger} from '../log.ts';
import {secureContextOptions} from '../relay/tls-options.ts';
import {webhookSettings} from '../settings.ts';
import {startWebhook} from '../webhook/server.ts';
import {exitCode, type CommandContext} from './command.ts';

/** Runs until the signal aborts, then drains. @throws ConfigError and whatever keeps the webhook from starting */
export async function webhook({env, flags, host, version, logTo, onLogger}: CommandContext, signal: AbortSignal): Promise<number> {
	const config = loadSettings(webhookSettings, env, host, flags);
	const {tlsMinVersion: minVersion, tlsCipherSuites: cipherSuites, targetRuntimeClass: runtimeClass, extendedResource} = config;
	const tls = secureContextOptions({...(minVersion && {minVersion}), ...(cipherSuites && {cipherSuites})});
	const log = await createLogger({level: config.logLevel, format: config.logFormat, destination: logTo});
	onLogger(log);
	log.info({version}, 'starting');
	await using running = await startWebhook({
		port: config.webhookPort,
		probePort: config.webhookProbePort,
		tlsDirectory: config.webhookCertDir,
		tls,
		policy: {runtimeClass, extendedResource, excludedNamespaces: config.excludedNamespaces, overhead: {cpu: config.overheadCpu, memory: config.overheadMemory}},
		drainDelayMs: config.webhookDrainDelayMs,
		log,
	});
	log.info({port: running.port, probePort: running.probePort, runtimeClass}, 'ready');
	if (!signal.aborted) {
		await once(signal, 'abort');
	}

	log.info({reason: toError(signal.reason).message}, 'stopping');
	return exitCode.ok;
}

/** `cloud-api-adaptor webhook`: runs the admission webhook. */
import {X509Certificate} from 'node:crypto';
import {once} from 'node:events';
import {readFile} from 'node:fs/promises';
import {loadSettings} from '../config/config.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {createLogger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {metricsIfWanted} from '../metrics/on-demand.ts';
import {secureContextOptions} from '../relay/tls-options.ts';
import {webhookSettings} from './webhook-settings.ts';
import {startWebhook} from '../webhook/server.ts';
import {exitCode, type CommandContext} from './command.ts';

/** Runs until the signal aborts, then drains. @throws ConfigError, or the error of a failed start */
export async function webhook(
	{env, flags, host, version, logTo, onLogger}: CommandContext,
	signal: AbortSignal,
): Promise<number> {
	const config = loadSettings(webhookSettings, env, host, flags);
	const {
		tlsMinVersion: minVersion,
		tlsCipherSuites: cipherSuites,
		targetRuntimeClass: runtimeClass,
		extendedResource,
	} = config;
	const tls = secureContextOptions({...(minVersion && {minVersion}), ...(cipherSuites && {cipherSuites})});
	const log = await createLogger({level: config.logLevel, format: config.logFormat, destination: logTo});
	onLogger(log);
	log.info({version}, 'starting');
	const clientCa =
		config.webhookClientCaFile === undefined ? undefined : await readClientCa(config.webhookClientCaFile);
	await using metrics = await metricsIfWanted(
		{at: config.metricsAt, setting: 'WEBHOOK_METRICS_PORT', component: 'webhook', version, log},
		async registry => (await import('../observers/webhook-metrics.ts')).webhookMetrics(registry),
	);
	await using running = await startWebhook({
		port: config.webhookPort,
		probePort: config.webhookProbePort,
		tlsDirectory: config.webhookCertDir,
		tls,
		...present({clientCa}),
		policy: {
			runtimeClass,
			extendedResource,
			excludedNamespaces: config.excludedNamespaces,
			overhead: {cpu: config.overheadCpu, memory: config.overheadMemory},
		},
		drainDelayMs: config.webhookDrainDelayMs,
		...present({observer: metrics?.observer}),
		log,
	});
	log.info({port: running.port, probePort: running.probePort, runtimeClass}, 'ready');
	if (!signal.aborted) {
		await once(signal, 'abort');
	}

	log.info({reason: toError(signal.reason).message}, 'stopping');
	return exitCode.ok;
}

/**
 * @throws AdaptorError 'failed-precondition' for a file without a certificate: otherwise no caller, or every caller,
 * would be accepted
 */
async function readClientCa(path: string): Promise<string> {
	try {
		const pem = await readFile(path, 'utf8');
		new X509Certificate(pem);
		return pem;
	} catch (cause) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'Could not read the certificate authorities of the webhook clients',
			where: {path},
			remedy: 'Set WEBHOOK_CLIENT_CA_FILE to a PEM file with at least one certificate.',
			cause,
		});
	}
}

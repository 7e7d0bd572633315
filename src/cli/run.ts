/** `cloud-api-adaptor libvirt`: runs the daemon. */
import {once} from 'node:events';
import {loadConfig} from '../config/config.ts';
import {startDaemon} from '../daemon.ts';
import {toError} from '../core/errors.ts';
import {apiServerAddress} from '../kubernetes/service-account.ts';
import {createLogger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {RecentLines} from '../core/recent-lines.ts';
import {exitCode, type CommandContext} from './command.ts';

/** Runs until the signal aborts, then drains. @throws ConfigError, or the error of a failed start */
export async function run(
	{env, flags, host, processContext: surroundings, version, logTo, onLogger}: CommandContext,
	signal: AbortSignal,
): Promise<number> {
	const config = loadConfig(env, host, flags);
	const recentLines = new RecentLines();
	const log = await createLogger({
		level: config.logLevel,
		format: config.logFormat,
		destination: logTo,
		tap: line => recentLines.add(line),
	});
	onLogger(log);
	log.info({version}, 'starting');
	for (const {name, reason} of config.warnings) {
		log.warn({reason: `${name}: ${reason}`}, 'configuration warning');
	}

	const apiServer = apiServerAddress(env);
	try {
		await using _daemon = await startDaemon(
			config,
			{...surroundings, ...present({apiServer}), version, recentLines},
			log,
			signal,
		);
		if (!signal.aborted) {
			await once(signal, 'abort');
		}

		log.info({reason: toError(signal.reason).message}, 'stopping');
	} catch (error) {
		// The signal aborted during the start: this is not an error.
		if (error !== signal.reason) {
			throw error;
		}
	}

	return exitCode.ok;
}

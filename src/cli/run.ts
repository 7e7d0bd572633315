/** `cloud-api-adaptor libvirt`: the daemon, from its configuration to the signal that ends it. */
import {once} from 'node:events';
import {loadConfig, type Host} from '../config.ts';
import {toError} from '../errors.ts';
import {startDaemon, type Surroundings} from '../daemon.ts';
import {createLogger, type Logger} from '../log.ts';

export interface RunOptions {
	readonly env: Readonly<Record<string, string | undefined>>;
	readonly flags: Readonly<Record<string, string>>;
	readonly host: Host;
	readonly surroundings: Surroundings;
	readonly version: string;
	/** Where log lines go: a file descriptor. */
	readonly logTo: number;
	/** Told the logger as soon as there is one. */
	readonly onLogger: (log: Logger) => void;
}

/** Runs until the signal aborts, then drains. @throws ConfigError and whatever keeps the daemon from starting */
export async function run({env, flags, host, surroundings, version, logTo, onLogger}: RunOptions, signal: AbortSignal): Promise<void> {
	const config = loadConfig(env, host, flags);
	const log = await createLogger({level: config.logLevel, format: config.logFormat, destination: logTo});
	onLogger(log);
	log.info({version}, 'starting');
	for (const {name, reason} of config.warnings) {
		log.warn({reason: `${name}: ${reason}`}, 'configuration warning');
	}

	await using _daemon = await startDaemon(config, surroundings, log, signal);
	if (!signal.aborted) {
		await once(signal, 'abort');
	}

	log.info({reason: toError(signal.reason).message}, 'stopping');
}

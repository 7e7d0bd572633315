/** `cloud-api-adaptor log-level`: shows or changes the level of the daemon on this node until it ends. */
import {loadSettings} from '../config/config.ts';
import {StatusClient} from '../status/client.ts';
import {statusSocketBeside} from '../status/socket-path.ts';
import {exitCode, type CommandContext} from './command.ts';
import {statusSettings} from './pods-settings.ts';

export async function logLevel(
	{env, flags, host, operands: [wanted], out}: CommandContext,
	signal: AbortSignal,
): Promise<number> {
	const {socketPath} = loadSettings(statusSettings, env, host, flags);
	await using status = await StatusClient.connect(statusSocketBeside(socketPath), signal);
	const {level} = await (wanted === undefined
		? status.call('GetLogLevel', {}, signal)
		: status.call('SetLogLevel', {level: wanted}, signal));
	out.write(`${level}\n`);
	return exitCode.ok;
}

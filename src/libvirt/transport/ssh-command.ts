/** Runs a short command on the host, with its input closed. Does not know the purpose of the command. */
import type {Client, ClientChannel} from 'ssh2';
import {abortable} from '../../core/lifetime.ts';

const outputLimit = 4096;
/** A forced command that never ends may run instead, so the wait is limited. */
const timeoutMs = 3000;

/**
 * @returns the beginning of the output, whatever the exit status; empty after the time-out
 * @throws if the server does not run commands
 */
export async function runRemote(client: Client, command: string, signal: AbortSignal): Promise<string> {
	const {promise, resolve, reject} = Promise.withResolvers<string>();
	let opened: ClientChannel | undefined;
	let output = '';
	client.exec(command, (error, channel) => {
		if (error !== undefined) {
			reject(error);
			return;
		}

		opened = channel;
		channel.on('data', (chunk: Buffer) => {
			output = (output + chunk.toString('utf8')).slice(0, outputLimit);
		});
		channel.stderr.resume();
		channel.on('close', () => resolve(output));
		channel.end();
	});
	const timeout = setTimeout(() => resolve(''), timeoutMs);
	try {
		return await abortable(promise, signal);
	} finally {
		clearTimeout(timeout);
		opened?.close();
	}
}

/** Runs a short command on the host, its input closed. Knows nothing of what it is for. */
import type {Client, ClientChannel} from 'ssh2';
import {abortable} from '../../core/lifetime.ts';

const outputLimit = 4096;
/** A forced command may run instead that never ends: nothing waits longer than this for it. */
const patienceMs = 3000;

/**
 * @returns the start of what it printed, however it ended; nothing when it took too long
 * @throws when the server runs no commands
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
	const patience = setTimeout(() => resolve(''), patienceMs);
	try {
		return await abortable(promise, signal);
	} finally {
		clearTimeout(patience);
		opened?.close();
	}
}

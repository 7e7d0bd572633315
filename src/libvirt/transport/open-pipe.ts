/** The transport that a URI asks for. */
import type {OpenPipe} from './pipe.ts';
import {openSshPipe, type SshPipeOptions} from './ssh-pipe.ts';
import {openUnixPipe} from './unix-pipe.ts';
import type {LibvirtUri} from '../uri.ts';

export type PipeOptions = SshPipeOptions;

/** Each call of the result opens a pipe of its own; what one learns about the way to the daemon helps the next. */
export function openPipe(uri: LibvirtUri, options: PipeOptions): OpenPipe {
	switch (uri.transport) {
		case 'ssh':
			return openSshPipe(uri, options);
		case 'unix':
			return openUnixPipe(uri, {});
	}
}

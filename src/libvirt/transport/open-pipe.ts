/** Chooses the transport for a URI. */
import type {OpenPipe} from './pipe.ts';
import {openSshPipe, type SshPipeOptions} from './ssh-pipe.ts';
import {openUnixPipe} from './unix-pipe.ts';
import type {LibvirtUri} from '../uri.ts';

export type PipeOptions = SshPipeOptions;

/**
 * Each call of the returned function opens a new pipe. Later calls reuse what earlier calls learned about the route.
 */
export function openPipe(uri: LibvirtUri, options: PipeOptions): OpenPipe {
	switch (uri.transport) {
		case 'ssh':
			return openSshPipe(uri, options);
		case 'unix':
			return openUnixPipe(uri, {});
	}
}

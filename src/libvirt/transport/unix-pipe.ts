/** Connects to the socket of the daemon on this machine. Does not know libvirt's protocol. */
import {connect, type Socket} from 'node:net';
import {AdaptorError, toError} from '../../core/errors.ts';
import {abortable, Scope} from '../../core/lifetime.ts';
import type {OpenPipe} from './pipe.ts';
import {socketPaths, type UnixUri} from '../uri.ts';

export interface UnixPipeOptions {
	/** Time-out of connecting, which only waits if the backlog of the daemon is full. Default: 10000. */
	readonly connectTimeoutMs?: number;
}

export function openUnixPipe(uri: UnixUri, {connectTimeoutMs = 10_000}: UnixPipeOptions): OpenPipe {
	return async signal => {
		using scope = new Scope(signal).deadline(connectTimeoutMs, 'the libvirt socket to accept a connection');
		let failure: AdaptorError | undefined;
		for (const path of socketPaths(uri)) {
			try {
				const duplex = await connectSocket(path, scope.signal);
				const close = (): void => void duplex.destroy();
				return {duplex, description: `unix ${path}`, close, cut: close};
			} catch (error) {
				scope.signal.throwIfAborted();
				// The error of a socket that exists and refuses is more useful than that of a missing one.
				failure =
					failure === undefined || systemCode(failure.cause) === 'ENOENT'
						? socketError(path, error)
						: failure;
			}
		}

		throw toError(failure);
	};
}

async function connectSocket(path: string, signal: AbortSignal): Promise<Socket> {
	signal.throwIfAborted();
	const {promise, resolve, reject} = Promise.withResolvers<Socket>();
	const socket = connect({path});
	socket.once('connect', () => resolve(socket));
	// Stays registered: an error before the session listens must not end the process, and 'close' follows it.
	socket.on('error', reject);
	try {
		return await abortable(promise, signal);
	} catch (error) {
		socket.destroy();
		throw error;
	}
}

function systemCode(error: unknown): string {
	return error instanceof Error && 'code' in error && typeof error.code === 'string'
		? error.code
		: toError(error).message;
}

function socketError(path: string, cause: unknown): AdaptorError {
	const code = systemCode(cause);
	if (code === 'EACCES' || code === 'EPERM') {
		return new AdaptorError({
			code: 'permission-denied',
			what: 'No permission to connect to the libvirt socket',
			where: {path},
			remedy: 'Run as root, or as a member of the group libvirt.',
			cause,
		});
	}

	return new AdaptorError({
		code: 'unavailable',
		what: `Could not connect to the libvirt socket: ${code}`,
		where: {path},
		cause,
		remedy: 'Check that libvirtd (or virtqemud) runs on this machine, or name its socket with socket= in the URI; for a remote host use qemu+ssh://HOST/system.',
	});
}

/** A TCP connection to a host that may be away for a while. Knows nothing of what is spoken on it. */
import {once} from 'node:events';
import {connect, type Socket} from 'node:net';
import {hedged} from '../../core/concurrency/hedged.ts';

/**
 * A lost SYN is sent again after 1, 3, 7 seconds (Linux before 6.5): a host that is back would go unnoticed for as
 * long. A socket more every second is one SYN every second; with the SYNs that each sends again by itself, five of them
 * last for more than ten.
 */
const synEveryMs = 1000;
const socketsAtMost = 5;

/** @throws the system's error; the signal's reason */
export async function connectTcp(host: string, port: number, signal: AbortSignal): Promise<Socket> {
	return hedged(
		async attempt => {
			// Nagle would add 40 ms to small calls.
			const socket = connect({host, port, noDelay: true});
			// Stays for good: an error that comes before the socket's user listens must not end the process, and
			// 'close' follows it anyway.
			socket.on('error', () => undefined);
			try {
				await once(socket, 'connect', {signal: attempt});
				return socket;
			} catch (error) {
				socket.destroy();
				throw attempt.aborted ? attempt.reason : error;
			}
		},
		{everyMs: synEveryMs, atMost: socketsAtMost, discard: socket => void socket.destroy()},
		signal,
	);
}

/** How long what was written before the end may take to reach the kernel. */
const endingMs = 1000;

/**
 * Closes by a reset, which throws away what the kernel has not got across. Of a socket that is only closed it goes on
 * sending that, for minutes: a call of a connection that was given up would still be carried out when the way is back,
 * after all that was decided since.
 */
export function resetTcp(socket: Socket): void {
	if (socket.destroyed) {
		return;
	}

	if (!socket.writableEnded || socket.writableFinished) {
		socket.resetAndDestroy();
		return;
	}

	// libuv refuses to reset a socket that is just being shut down (uv_tcp_close_reset, UV_EINVAL). Node.js 24 does not
	// expect that: it would keep the descriptor for ever, and could not end.
	const force = setTimeout(() => socket.destroy(), endingMs);
	socket.once('close', () => clearTimeout(force));
	socket.once('finish', () => resetTcp(socket));
}

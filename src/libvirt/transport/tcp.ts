/** Makes a TCP connection to a host that may be unreachable for a while. Knows nothing about the protocol on it. */
import {once} from 'node:events';
import {connect, type Socket} from 'node:net';
import {hedged} from '../../core/concurrency/hedged.ts';

/**
 * A lost SYN is sent again after 1, 3 and 7 seconds (Linux before 6.5), so a recovered host would go unnoticed for as
 * long. One more socket every second sends one SYN every second; because each socket also retransmits its SYN, five
 * sockets are enough for more than ten seconds.
 */
const synEveryMs = 1000;
const socketsAtMost = 5;

/** @throws the error of the system; the reason of the signal */
export async function connectTcp(host: string, port: number, signal: AbortSignal): Promise<Socket> {
	return hedged(
		async attempt => {
			// Nagle's algorithm would add 40 ms to small calls.
			const socket = connect({host, port, noDelay: true});
			// Stays registered: an early error must not end the process, and 'close' follows it.
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

/** How long the end of a socket may take to send written data to the kernel. */
const endingMs = 1000;

/**
 * Closes by a reset, which discards data that has not arrived. After a normal close, the kernel would continue to send
 * it for minutes. A call of an abandoned connection would then still be executed after the network recovers, against
 * all decisions made since.
 */
export function resetTcp(socket: Socket): void {
	if (socket.destroyed) {
		return;
	}

	if (!socket.writableEnded || socket.writableFinished) {
		socket.resetAndDestroy();
		return;
	}

	// libuv refuses to reset a socket that is being shut down (uv_tcp_close_reset, UV_EINVAL). Node.js 24 does not
	// expect that: it would keep the descriptor forever, and could not exit.
	const force = setTimeout(() => socket.destroy(), endingMs);
	socket.once('close', () => clearTimeout(force));
	socket.once('finish', () => resetTcp(socket));
}

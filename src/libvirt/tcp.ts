/** A TCP connection to a host that may be away for a while. Knows nothing of what is spoken on it. */
import {once} from 'node:events';
import {connect, type Socket} from 'node:net';
import {overlapping} from './overlapping.ts';

/**
 * A lost SYN is sent again after 1, 3, 7 seconds (Linux before 6.5): a host that is back would go unnoticed for as long. A socket more every
 * second is one SYN every second; with the SYNs that each sends again by itself, five of them last for more than ten.
 */
const synEveryMs = 1000;
const socketsAtMost = 5;

/** @throws the system's error; the signal's reason */
export async function connectTcp(host: string, port: number, signal: AbortSignal): Promise<Socket> {
	return overlapping(async attempt => {
		// Nagle would add 40 ms to small calls.
		const socket = connect({host, port, noDelay: true});
		// Stays for good: an error that comes before the socket's user listens must not end the process, and 'close' follows it anyway.
		socket.on('error', () => undefined);
		try {
			await once(socket, 'connect', {signal: attempt});
			return socket;
		} catch (error) {
			socket.destroy();
			throw attempt.aborted ? attempt.reason : error;
		}
	}, {everyMs: synEveryMs, atMost: socketsAtMost, discard: socket => void socket.destroy()}, signal);
}

/** Back-pressure towards a sender: whether more is read of what it sends. */
import type {Socket} from 'node:net';

export function setReading(socket: Socket, shall: boolean): void {
	if (shall !== socket.isPaused()) {
		return;
	}

	if (shall) {
		socket.resume();
	} else {
		socket.pause();
	}
}

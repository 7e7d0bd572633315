/**
 * UDP for tests that count packets. `echo PORT` answers; `send ADDRESS PORT COUNT HEX` sends and does not wait; `flood
 * ADDRESS PORT COUNT SIZE` sends each datagram when the last one was answered, and prints how many were before the
 * first that got lost.
 */
import {createSocket} from 'node:dgram';
import {once} from 'node:events';

/** Nothing takes this long on a machine under load but what never comes. */
const lostAfterMs = 20_000;
const [mode = '', ...args] = process.argv.slice(2);
const socket = createSocket('udp4');
switch (mode) {
	case 'echo': {
		socket.on('message', (message, from) => socket.send(message, from.port, from.address));
		socket.bind(Number(args[0]), () => console.log('listening'));
		break;
	}

	case 'send': {
		const [address, port, count, hex = ''] = args;
		for (let sent = 0; sent < Number(count); sent++) {
			await new Promise(resolve => {
				socket.send(Buffer.from(hex, 'hex'), Number(port), address, resolve);
			});
		}

		socket.close();
		break;
	}

	case 'flood': {
		const [address, port, count, size] = args;
		let answered = 0;
		try {
			for (; answered < Number(count); answered++) {
				const answer = once(socket, 'message', {signal: AbortSignal.timeout(lostAfterMs)});
				socket.send(Buffer.alloc(Number(size)), Number(port), address);
				await answer;
			}
		} finally {
			console.log(answered);
			socket.close();
		}

		break;
	}

	default: {
		throw new TypeError(`unknown mode ${mode}`);
	}
}

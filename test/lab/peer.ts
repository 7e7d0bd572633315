/**
 * A program for the worker and for ordinary pods that tests the network. clients.ts runs it.
 *
 *     serve PORT            answers HTTP: `/` returns the address of the client, `/bytes?count=N` sends bytes. Prints
 *                           `Serving` on standard error
 *     get URL               prints the body
 *     checksum URL          prints the number of bytes of the body, their SHA-256, and that according to the server
 *     echo HOST PORT SIZE   sends a UDP datagram of this size and prints the number of bytes in the answer. The kernel
 *                           does not fragment those that fit the interface (ip(7), IP_MTU_DISCOVER, default "want")
 */
import {createHash} from 'node:crypto';
import {createSocket} from 'node:dgram';
import {once} from 'node:events';
import {createServer} from 'node:http';

/** A pattern in which lost, duplicated or exchanged segments are detected. */
export function pattern(count: number): Buffer {
	const bytes = Buffer.alloc(count);
	for (let at = 0, value = 1; at < count; at++) {
		value = (Math.imul(value, 1_664_525) + 1_013_904_223) | 0;
		bytes[at] = value >>> 24;
	}

	return bytes;
}

export function sha256(bytes: Uint8Array): string {
	return createHash('sha256').update(bytes).digest('hex');
}

const commands: Readonly<Record<string, (...args: string[]) => Promise<void>>> = {
	async serve(port) {
		const server = createServer((request, response) => {
			const {pathname, searchParams} = new URL(request.url ?? '', 'http://server');
			response.end(
				pathname === '/bytes'
					? pattern(Number(searchParams.get('count')))
					: `Hello ${request.socket.remoteAddress ?? ''}.\n`,
			);
		});
		server.listen(Number(port), '0.0.0.0');
		await once(server, 'listening');
		console.error('Serving');
	},

	async get(url = '') {
		process.stdout.write(await (await fetch(url)).text());
	},

	async checksum(url = '') {
		const response = await fetch(url);
		const bytes = Buffer.from(await response.arrayBuffer());
		console.log(bytes.length, sha256(bytes), response.headers.get('x-sha256'));
	},

	async echo(host, port, size) {
		const socket = createSocket('udp4');
		const sent = pattern(Number(size));
		socket.send(sent, Number(port), host);
		const [datagram] = (await once(socket, 'message')) as [Buffer];
		socket.close();
		console.log(datagram.equals(sent) ? datagram.length : 'other bytes');
	},
};

if (import.meta.main) {
	const [command = '', ...args] = process.argv.slice(2);
	await commands[command]?.(...args);
}

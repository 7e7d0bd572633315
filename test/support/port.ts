/** Ports for servers that must be told theirs. */
import {randomInt} from 'node:crypto';
import {once} from 'node:events';
import {createServer} from 'node:net';

/**
 * Free on this address, and not one that the kernel gives to whoever wants any (Linux, net.ipv4.ip_local_port_range:
 * 32768 and up): between this answer and its use, nobody gets it by chance.
 */
export async function freePort(address = '127.0.0.1'): Promise<number> {
	for (;;) {
		const port = randomInt(10_000, 32_000);
		const server = createServer().listen(port, address);
		try {
			await once(server, 'listening');
		} catch (error) {
			if (error instanceof Error && 'code' in error && error.code === 'EADDRINUSE') {
				continue;
			}

			throw error;
		}

		server.close();
		await once(server, 'close');
		return port;
	}
}

/** Ports for servers that need a port number in their configuration. */
import {randomInt} from 'node:crypto';
import {once} from 'node:events';
import {createServer} from 'node:net';

/**
 * A free port on this address, outside the range from which the kernel assigns ports (Linux,
 * net.ipv4.ip_local_port_range: 32768 and up). So the kernel does not assign it to another socket before it is used.
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

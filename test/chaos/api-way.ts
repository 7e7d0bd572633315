/**
 * Forwards connections of a daemon in its own network namespace to an API server: from a TCP port on the loopback of
 * the namespace to a unix socket, which does not belong to a network. Both are arguments. Prints a line when it
 * listens.
 */
import {connect, createServer} from 'node:net';

const [port, path] = process.argv.slice(2);
createServer(client => {
	const server = connect(String(path));
	for (const [from, to] of [
		[client, server],
		[server, client],
	] as const) {
		from.on('error', () => to.destroy()).once('close', () => to.destroy());
		from.pipe(to);
	}
}).listen(Number(port), () => process.stderr.write('ready\n'));

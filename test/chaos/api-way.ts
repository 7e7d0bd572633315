/**
 * The way to an API server for a daemon in a network namespace of its own: connections to a TCP port of the namespace's
 * loopback go on to a unix socket, which is not bound to a network. Told both by its arguments; says when it listens.
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

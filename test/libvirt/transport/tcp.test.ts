// Connections that are given up, whatever was under way on them: what is not closed then never is, and keeps the
// process from ending.
import {once} from 'node:events';
import {createServer, type AddressInfo, type Socket} from 'node:net';
import test from 'ava';
import {connectTcp, resetTcp} from '../../../src/libvirt/transport/tcp.ts';

const {signal} = new AbortController();

/** Ways to the moment at which a socket's end is under way. */
const moments: Readonly<Record<string, () => Promise<unknown>>> = {
	'at once': async () => undefined,
	'in the next tick': async () => new Promise<void>(resolve => process.nextTick(resolve)),
	'some ticks later': async () =>
		new Promise<void>(resolve => process.nextTick(() => process.nextTick(() => process.nextTick(resolve)))),
	'in the next turn': async () => new Promise<void>(resolve => setImmediate(resolve)),
};

for (const [when, moment] of Object.entries(moments)) {
	for (const [what, end] of Object.entries({
		open: () => undefined,
		ending: (socket: Socket) => socket.end('the last words'),
	})) {
		test(`a socket that is ${what} is closed by a reset ${when}`, async t => {
			const server = createServer(socket => socket.on('error', () => undefined).resume()).listen(0, '127.0.0.1');
			await once(server, 'listening');
			t.teardown(() => server.close());
			const socket = await connectTcp('127.0.0.1', (server.address() as AddressInfo).port, signal);
			const errors: unknown[] = [];
			socket.on('error', error => errors.push(error));
			end(socket);
			await moment();
			resetTcp(socket);
			await once(socket, 'close', {signal: AbortSignal.timeout(60_000)});
			t.deepEqual(errors, []);
		});
	}
}

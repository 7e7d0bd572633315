/**
 * Listens at the path in its argument with umask 000, and connects to the socket as another user twice: right after it
 * is bound, and when it is at its final path. Prints the two results as JSON.
 */
import {once} from 'node:events';
import {connect, Server} from 'node:net';
import process from 'node:process';
import {silentLogger} from '../../src/core/log.ts';
import {listenAt} from '../../src/core/unix-listener.ts';

const nobody = 65_534;
const [, , path = ''] = process.argv;

/** connect(2) is called before the first `await`. */
async function asNobody(to: string): Promise<string> {
	process.seteuid?.(nobody);
	const socket = connect(to);
	process.seteuid?.(0);
	try {
		await once(socket, 'connect');
		return 'connected';
	} catch (error) {
		return (error as NodeJS.ErrnoException).code ?? '';
	} finally {
		socket.destroy();
	}
}

process.umask(0);
const attempts: Array<Promise<string>> = [];
const listen = Reflect.get(Server.prototype, 'listen') as (...words: unknown[]) => Server;
Server.prototype.listen = function (this: Server, ...words: unknown[]) {
	const [{path: bound}] = words as [{path: string}];
	Reflect.apply(listen, this, words);
	attempts.push(asNobody(bound));
	return this;
};
const listener = await listenAt({path, setting: 'SOCKET', log: silentLogger}, socket => socket.destroy());
attempts.push(asNobody(path));
process.stdout.write(JSON.stringify(await Promise.all(attempts)));
await listener[Symbol.asyncDispose]();

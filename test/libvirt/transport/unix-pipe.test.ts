import {once} from 'node:events';
import {mkdtemp, rm, writeFile} from 'node:fs/promises';
import {createServer, type Socket} from 'node:net';
import {tmpdir} from 'node:os';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../../src/core/errors.ts';
import {openUnixPipe} from '../../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri, type UnixUri} from '../../../src/libvirt/uri.ts';

function uriOf(path: string): UnixUri {
	return parseLibvirtUri(`qemu:///system?socket=${encodeURIComponent(path)}`) as UnixUri;
}

async function temporaryDirectory(t: ExecutionContext): Promise<string> {
	const directory = await mkdtemp(`${tmpdir()}/caat-unix-pipe-`);
	t.teardown(async () => rm(directory, {recursive: true}));
	return directory;
}

test('the pipe is the socket, and closing it closes the socket', async t => {
	const path = `${await temporaryDirectory(t)}/sock`;
	const accepted = Promise.withResolvers<Socket>();
	const server = createServer(socket => {
		socket.pipe(socket);
		accepted.resolve(socket);
	}).listen(path);
	t.teardown(() => server.close());
	await once(server, 'listening');
	const pipe = await openUnixPipe(uriOf(path), {})(AbortSignal.timeout(60_000));
	t.is(pipe.description, `unix ${path}`);
	pipe.duplex.write('hello');
	t.is(String(((await once(pipe.duplex, 'data')) as [Buffer])[0]), 'hello');
	const peer = await accepted.promise;
	pipe.close();
	pipe.close();
	await once(peer, 'close');
	t.true(pipe.duplex.destroyed);
});

test('a socket that is missing, no socket or not listened at is unavailable', async t => {
	const directory = await temporaryDirectory(t);
	await writeFile(`${directory}/file`, '');
	for (const [name, code] of [
		['missing', /ENOENT/],
		['file', /ECONNREFUSED/],
	] as const) {
		const error = await t.throwsAsync(
			openUnixPipe(uriOf(`${directory}/${name}`), {})(AbortSignal.timeout(60_000)),
			{instanceOf: AdaptorError},
		);
		t.is(error.code, 'unavailable');
		t.is(error.where['path'], `${directory}/${name}`);
		t.regex(error.message, code);
		t.truthy(error.remedy);
	}
});

test('an aborted signal opens nothing', async t => {
	await t.throwsAsync(openUnixPipe(uriOf('/nonexistent'), {})(AbortSignal.abort(new Error('no'))), {message: 'no'});
});

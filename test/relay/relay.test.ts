/** What a shim and a VM notice of the relay between them: nothing. */
import {once} from 'node:events';
import {mkdir, readdir, readFile, rename, rm, stat, writeFile} from 'node:fs/promises';
import {createServer, type Socket} from 'node:net';
import {dirname, join} from 'node:path';
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import test from 'ava';
import fc from 'fast-check';
import {from} from '../contract/agent-relays.ts';
import {answerEmpty, echo} from '../support/forwarder.ts';
import {encodeFrame, frameType, headerLength, maxMessageLength} from '../../src/ttrpc/frame.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {data, FrameReader, request, response, statusOf} from './frames.ts';
import {connectShim, readAll, readBytes, realHarness, running, until} from './harness.ts';

const fixture = async (name: string): Promise<Buffer> =>
	readFile(new URL(`../fixtures/kata-shim/${name}`, import.meta.url));

/** Writes in pieces of these sizes, over and over, each in a turn of its own. */
async function writeInPieces(stream: Socket | TLSSocket, bytes: Buffer, sizes: readonly number[]): Promise<void> {
	for (let position = 0, n = 0; position < bytes.length; n++) {
		const size = sizes[n % sizes.length] ?? 1;
		stream.write(bytes.subarray(position, position + size));
		position += size;
		await turn();
	}
}

/** The shim's connection is over, whether it was ended or lost. */
async function gone(shim: Socket): Promise<void> {
	await new Promise<void>(resolve => {
		shim.once('end', resolve)
			.once('error', () => resolve())
			.resume();
	});
	shim.destroy();
}

test('the recorded conversation of a shim passes byte for byte in both directions, however it is cut', async t => {
	const client = await fixture('agent.client.bin');
	const server = await fixture('agent.server.bin');
	await using run = await running();
	await fc.assert(
		fc.asyncProperty(fc.array(fc.integer({min: 1, max: 3000}), {minLength: 1, maxLength: 8}), async sizes => {
			const {shim, vm} = await run.converse();
			const [atVm] = await Promise.all([readBytes(vm, client.length), writeInPieces(shim, client, sizes)]);
			t.deepEqual(atVm, client);
			const [atShim] = await Promise.all([
				readBytes(shim, server.length),
				writeInPieces(
					vm,
					server,
					sizes.map(size => Math.min(size, 40)),
				),
			]);
			t.deepEqual(atShim, server);
			shim.end();
			vm.end();
			await Promise.all([readAll(shim), readAll(vm)]);
		}),
		{numRuns: 12},
	);
	const methods = new Set(
		run.harness.lines
			.filter(({msg}) => msg === 'agent call')
			.map(({method, code}) => `${method ?? ''} ${code ?? ''}`),
	);
	t.true(methods.has('grpc.AgentService/CreateSandbox OK'), [...methods].join());
	t.true(methods.has('grpc.Health/Check OK'), [...methods].join());
});

test("the end of the shim's direction reaches the VM, and the last data of the VM still reaches the shim", async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	const [asked, answered] = [request(1, 'ReadStdout'), response(1, Buffer.alloc(300_000, 'x'))];
	shim.write(asked);
	t.deepEqual(await readBytes(vm, asked.length), asked);
	shim.end();
	t.is((await readAll(vm)).length, 0);
	vm.end(answered);
	t.deepEqual(await readAll(shim), answered);
	await run.forwarder.idle();
});

test('each shim connection has its own connection to the VM; the first one uses the verified connection', async t => {
	await using run = await running({onConnection: echo});
	const shims = await Promise.all([1, 2, 3].map(async () => connectShim(run.socketPath)));
	await Promise.all(
		shims.map(async (shim, n) => {
			const said = request(n, 'CopyFile', {payload: Buffer.alloc(200_000, n)});
			shim.write(said);
			t.deepEqual(await readBytes(shim, said.length), data(n, said.subarray(headerLength)));
			shim.end();
		}),
	);
	t.is(run.forwarder.proven, 3);
	await run.forwarder.idle();
});

test('a frame over the protocol limit is answered on its stream on either side, and the session continues', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	const [fromShim, fromVm] = [new FrameReader(shim), new FrameReader(vm)];
	shim.write(encodeFrame({streamId: 1, type: frameType.request, flags: 0}, Buffer.alloc(maxMessageLength + 1)));
	const refused = await fromShim.next();
	t.deepEqual([refused.streamId, statusOf(refused).code], [1, statusCode.resourceExhausted]);
	shim.write(request(3, 'ReadStdout'));
	t.is((await fromVm.next()).streamId, 3);
	vm.write(encodeFrame({streamId: 3, type: frameType.response, flags: 0}, Buffer.alloc(maxMessageLength + 1)));
	const cutOff = await fromShim.next();
	t.deepEqual([cutOff.streamId, statusOf(cutOff).code], [3, statusCode.resourceExhausted]);
	const largest = encodeFrame({streamId: 5, type: frameType.response, flags: 0}, Buffer.alloc(maxMessageLength));
	shim.write(request(5, 'ReadStdout'));
	t.is((await fromVm.next()).streamId, 5);
	vm.write(largest);
	t.true((await fromShim.next()).bytes.equals(largest));
	t.deepEqual(fromVm.waiting, []);
});

for (const who of ['VM', 'shim'] as const) {
	test(`if the ${who} does not read, the other side soon pauses, and nothing is lost when it reads again`, async t => {
		await using run = await running();
		const {shim, vm} = await run.converse();
		const [writer, reader] = who === 'VM' ? [shim, vm] : [vm, shim];
		const asked = request(1, 'ReadStdout');
		shim.write(asked);
		await readBytes(vm, asked.length);
		const chunk = data(1, Buffer.alloc(65_526, 7));
		const chunks = 1024;
		let written = 0;
		const feed = (): void => {
			while (written < chunks) {
				written++;
				if (!writer.write(chunk)) {
					return;
				}
			}
		};
		writer.on('drain', feed);
		feed();
		// Everything is in this process, but the kernel: when nothing moves for so many turns, nothing will.
		for (let still = 0, before = -1; still < 500; still = written === before ? still + 1 : 0) {
			before = written;
			await turn();
		}

		t.true(written * chunk.length < 24 * 1024 * 1024, `${written} chunks were taken`);
		t.true(written > 0);
		const received = await readBytes(reader, chunks * chunk.length);
		t.true(received.equals(Buffer.concat(Array.from({length: chunks}, () => chunk))));
	});
}

test('a shim that vanishes leaves no connection to the VM', async t => {
	await using run = await running({onConnection: answerEmpty});
	const shim = await connectShim(run.socketPath);
	shim.write((await fixture('agent.client.bin')).subarray(0, 294));
	await once(shim, 'data');
	shim.destroy();
	await run.forwarder.idle();
	t.is(run.forwarder.open, 0);
});

for (const how of ['ends', 'resets'] as const) {
	test(`a VM that ${how} the unused connection is dialled again for the shim`, async t => {
		await using run = await running();
		const unused = await run.forwarder.accept();
		if (how === 'ends') {
			unused.end();
		} else {
			run.forwarder.reset();
		}

		await until(() => run.harness.lines.some(({msg}) => msg.startsWith('the VM closed an unused connection')));
		const {shim, vm} = await run.converse();
		const said = request(1, 'Check');
		shim.write(said);
		t.deepEqual(await readBytes(vm, said.length), said);
	});
}

test('disposing during traffic closes everything at once and removes the socket and its directory', async t => {
	await using run = await running({onConnection: echo});
	const shims = await Promise.all([1, 2, 3].map(async () => connectShim(run.socketPath)));
	await Promise.all(
		shims.map(async shim => {
			const chunk = data(1, Buffer.alloc(65_526));
			shim.write(request(1, 'ReadStdout'));
			await once(shim, 'data');
			shim.on('data', () => shim.writableNeedDrain || shim.write(chunk));
			shim.write(chunk);
			await once(shim, 'data');
		}),
	);
	const allGone = shims.map(gone);
	await Promise.all([run.relay[Symbol.asyncDispose](), run.relay[Symbol.asyncDispose]()]);
	await Promise.all(allGone);
	await run.forwarder.idle();
	await t.throwsAsync(stat(dirname(run.socketPath)), {code: 'ENOENT'});
});

test('disposing while a shim waits for its connection to a VM that is gone ends both', async t => {
	await using run = await running();
	await run.forwarder[Symbol.asyncDispose]();
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('the VM closed an unused connection')));
	const shim = await connectShim(run.socketPath);
	const shimGone = gone(shim);
	await run.relay[Symbol.asyncDispose]();
	await shimGone;
	t.false(await run.harness.isServed(run.socketPath));
});

test('the socket (0600, in a 0700 directory) replaces a stale socket and leaves other files alone', async t => {
	await using harness = await realHarness();
	const {relays, directory, address} = harness;
	const signal = AbortSignal.timeout(100_000);
	const socketPath = join(directory, 'a', 'agent.ttrpc');
	await mkdir(dirname(socketPath), {mode: 0o755});
	await writeFile(socketPath, 'stale');
	await writeFile(join(dirname(socketPath), 'record.json'), '{}');
	await using _vm = await harness.boot(address(1), 'podvm-a', await relays.issue('podvm-a', signal));
	const relay = await relays.open({sandboxId: 'a', instanceName: 'podvm-a', socketPath}, from(address(1)), signal);
	t.is((await stat(socketPath)).mode & 0o777, 0o600);
	t.is((await stat(dirname(socketPath))).mode & 0o777, 0o700);
	t.true(await harness.isServed(socketPath));
	await relay[Symbol.asyncDispose]();
	t.deepEqual(await readdir(dirname(socketPath)), ['record.json']);
});

test('a socket that another daemon has put in the place is not removed', async t => {
	await using run = await running();
	const successor = createServer().listen(`${run.socketPath}.new`);
	t.teardown(() => successor.close());
	await once(successor, 'listening');
	await rename(`${run.socketPath}.new`, run.socketPath);
	await run.relay[Symbol.asyncDispose]();
	t.true(await run.harness.isServed(run.socketPath));
});

test('files of a daemon that crashed at any step of listening are removed, and nothing else', async t => {
	await using harness = await realHarness();
	const {relays, directory} = harness;
	const socketPath = join(directory, 'a', 'agent.ttrpc');
	await relays.discard(socketPath);
	await mkdir(dirname(socketPath), {mode: 0o700});
	await Promise.all(['.aaaaaaaa', '.bbbbbbbb'].map(async name => mkdir(join(dirname(socketPath), name))));
	const servers = ['agent.ttrpc', '.0123abcd', '.aaaaaaaa/s'].map(name =>
		createServer().listen(join(dirname(socketPath), name)),
	);
	t.teardown(() => servers.forEach(server => server.close()));
	await Promise.all(servers.map(async server => once(server, 'listening')));
	await writeFile(join(dirname(socketPath), '.89abcdef'), 'no socket');
	await relays.discard(socketPath);
	t.deepEqual(await readdir(dirname(socketPath)), ['.89abcdef']);
	await rm(join(dirname(socketPath), '.89abcdef'));
	await relays.discard(socketPath);
	await t.throwsAsync(stat(dirname(socketPath)), {code: 'ENOENT'});
});

test('no key is in any line of the log', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	echo(vm);
	shim.write(request(1, 'Check'));
	await once(shim, 'data');
	const text = run.harness.text();
	t.true(text.length > 0);
	t.notRegex(text, /PRIVATE KEY/);
	const keyLine = run.harness.identity.client.key.reveal().split('\n')[1] ?? '';
	t.true(keyLine.length > 30);
	t.false(text.includes(keyLine));
});

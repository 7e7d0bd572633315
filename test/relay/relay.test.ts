/** What a shim and a VM notice of the relay between them: nothing. */
import {once} from 'node:events';
import {mkdir, readdir, readFile, rename, stat, writeFile} from 'node:fs/promises';
import {createServer, type Socket} from 'node:net';
import {dirname, join} from 'node:path';
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import test from 'ava';
import fc from 'fast-check';
import type {AgentRelay} from '../../src/sandbox/ports.ts';
import {from} from '../contract/agent-relays.ts';
import {answerEmpty, echo, startForwarder, type Forwarder, type ForwarderOptions} from '../support/forwarder.ts';
import {connectShim, readAll, readBytes, realHarness, until, type RealHarness} from './harness.ts';

const fixture = async (name: string): Promise<Buffer> => readFile(new URL(`../fixtures/kata-shim/${name}`, import.meta.url));

interface Running extends AsyncDisposable {
	readonly harness: RealHarness;
	readonly forwarder: Forwarder;
	readonly relay: AgentRelay;
	readonly socketPath: string;
	/** A shim's connection and the VM's end of it. */
	converse(): Promise<{shim: Socket; vm: TLSSocket}>;
}

async function running(options: Partial<ForwarderOptions> = {}): Promise<Running> {
	await using undo = new AsyncDisposableStack();
	const harness = undo.use(await realHarness());
	const {relays, directory, address, port} = harness;
	const signal = AbortSignal.timeout(20_000);
	const tls = await relays.issue('podvm-a-12345678', signal);
	const forwarder = undo.use(await startForwarder({tls, address: address(1), port, ...options}));
	const socketPath = join(directory, 'a', 'agent.ttrpc');
	const relay = undo.use(await relays.open({sandboxId: 'a', instanceName: 'podvm-a-12345678', socketPath}, from(address(1)), signal));
	const all = undo.move();
	return {
		harness, forwarder, relay, socketPath,
		async converse() {
			const shim = await connectShim(socketPath);
			return {shim, vm: await forwarder.accept()};
		},
		[Symbol.asyncDispose]: async () => all.disposeAsync(),
	};
}

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
		shim.once('end', resolve).once('error', () => resolve()).resume();
	});
	shim.destroy();
}

test('the recorded conversation of a shim passes byte for byte in both directions, however it is cut', async t => {
	const client = await fixture('agent.client.bin');
	const server = await fixture('agent.server.bin');
	await using run = await running();
	await fc.assert(fc.asyncProperty(fc.array(fc.integer({min: 1, max: 3000}), {minLength: 1, maxLength: 8}), async sizes => {
		const {shim, vm} = await run.converse();
		const [atVm] = await Promise.all([readBytes(vm, client.length), writeInPieces(shim, client, sizes)]);
		t.deepEqual(atVm, client);
		const [atShim] = await Promise.all([readBytes(shim, server.length), writeInPieces(vm, server, sizes.map(size => Math.min(size, 40)))]);
		t.deepEqual(atShim, server);
		shim.end();
		vm.end();
		await Promise.all([readAll(shim), readAll(vm)]);
	}), {numRuns: 12});
	const methods = new Set(run.harness.lines.filter(({msg}) => msg === 'agent call').map(({method, code}) => `${method ?? ''} ${code ?? ''}`));
	t.true(methods.has('grpc.AgentService/CreateSandbox OK'), [...methods].join());
	t.true(methods.has('grpc.Health/Check OK'), [...methods].join());
});

test('what the shim ends, ends at the VM, and the VM\'s last words still reach the shim', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	shim.end('goodbye');
	t.is((await readAll(vm)).toString(), 'goodbye');
	vm.end('x'.repeat(300_000));
	t.is((await readAll(shim)).length, 300_000);
	await run.forwarder.idle();
});

test('what the VM ends, ends at the shim, and the shim\'s last words still reach the VM', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	vm.end('goodbye');
	t.is((await readAll(shim)).toString(), 'goodbye');
	shim.end('x'.repeat(300_000));
	t.is((await readAll(vm)).length, 300_000);
	await run.forwarder.idle();
});

test('several connections are several conversations, the first over the connection that proved the VM', async t => {
	await using run = await running({onConnection: echo});
	const shims = await Promise.all([1, 2, 3].map(async () => connectShim(run.socketPath)));
	await Promise.all(shims.map(async (shim, n) => {
		const said = Buffer.alloc(200_000, n + 1);
		shim.end(said);
		t.deepEqual(await readAll(shim), said);
	}));
	t.is(run.forwarder.proven, 3);
	await run.forwarder.idle();
});

for (const who of ['VM', 'shim'] as const) {
	test(`a ${who} that does not read stops the other side soon, and loses nothing when it reads again`, async t => {
		await using run = await running();
		const {shim, vm} = await run.converse();
		const [writer, reader] = who === 'VM' ? [shim, vm] : [vm, shim];
		const chunk = Buffer.alloc(65_536, 7);
		const chunks = 1024;
		let written = 0;
		const feed = (): void => {
			while (written < chunks) {
				written++;
				if (!writer.write(chunk)) {
					return;
				}
			}

			writer.end();
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
		let received = 0;
		reader.on('data', (bytes: Buffer) => {
			received += bytes.length;
		});
		await once(reader, 'end');
		t.is(received, chunks * chunk.length);
	});
}

test('a VM that is lost takes the shim\'s connection with it, and the log says so', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	shim.write('x');
	await once(vm, 'data');
	run.forwarder.reset();
	await gone(shim);
	await until(() => run.harness.lines.some(({msg}) => msg === 'connection to the VM lost, shim connection closed'));
	t.true(await run.harness.isServed(run.socketPath));
});

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

		await until(() => run.harness.lines.some(({msg}) => msg.startsWith('unused connection closed')));
		const {shim, vm} = await run.converse();
		echo(vm);
		shim.end('still here');
		t.is((await readAll(shim)).toString(), 'still here');
	});
}

test('disposing in the middle of traffic closes everything at once and removes the socket with its directory', async t => {
	await using run = await running({onConnection: echo});
	const shims = await Promise.all([1, 2, 3].map(async () => connectShim(run.socketPath)));
	await Promise.all(shims.map(async shim => {
		shim.on('data', () => shim.write(Buffer.alloc(65_536)));
		shim.write(Buffer.alloc(65_536));
		await once(shim, 'data');
	}));
	const allGone = shims.map(gone);
	await Promise.all([run.relay[Symbol.asyncDispose](), run.relay[Symbol.asyncDispose]()]);
	await Promise.all(allGone);
	await run.forwarder.idle();
	await t.throwsAsync(stat(dirname(run.socketPath)), {code: 'ENOENT'});
});

test('disposing while a shim waits for its connection to a VM that is gone ends both', async t => {
	await using run = await running();
	await run.forwarder[Symbol.asyncDispose]();
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('unused connection closed')));
	const shim = await connectShim(run.socketPath);
	const shimGone = gone(shim);
	await run.relay[Symbol.asyncDispose]();
	await shimGone;
	t.false(await run.harness.isServed(run.socketPath));
});

test('the socket is 0600 in a directory 0700, replaces what a dead process left, and leaves the sandbox\'s other files alone', async t => {
	await using harness = await realHarness();
	const {relays, directory, address} = harness;
	const signal = AbortSignal.timeout(20_000);
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

test('no key is in any line of the log', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	echo(vm);
	shim.end('x');
	await readAll(shim);
	const text = run.harness.text();
	t.true(text.length > 0);
	t.notRegex(text, /PRIVATE KEY/);
	const keyLine = run.harness.identity.client.key.reveal().split('\n')[1] ?? '';
	t.true(keyLine.length > 30);
	t.false(text.includes(keyLine));
});

import {once} from 'node:events';
import {readFileSync} from 'node:fs';
import {connect} from 'node:net';
import {buffer} from 'node:stream/consumers';
import test from 'ava';
import {loadContract} from '../../src/api/contract.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable} from '../../src/core/lifetime.ts';
import type {CreateSandbox} from '../../src/sandbox/ports.ts';
import {TtrpcClient} from '../../src/ttrpc/client.ts';
import type {MethodDefinition} from '../../src/ttrpc/service.ts';
import {gate, never, serving} from './harness.ts';

const recorded = (name: string): Buffer => readFileSync(new URL(`../fixtures/kata-shim/${name}.bin`, import.meta.url));
const {hypervisor, podVmInfo} = loadContract();

/** What proto-loader gives both ways; the compiler knows only the server's half of it as `MethodDefinition`. */
function method(
	definition: typeof hypervisor,
	name: string,
): MethodDefinition & {requestSerialize: (value: object) => Buffer; responseDeserialize: (bytes: Buffer) => object} {
	const found = definition[name];
	if (found === undefined) {
		throw new Error(`no method ${name}`);
	}

	return found;
}

function clientAt(t: {teardown: (undo: () => Promise<void>) => void}, path: string): TtrpcClient {
	const client = new TtrpcClient(connect(path));
	t.teardown(async () => client[Symbol.asyncDispose]());
	return client;
}

/** Writes what a shim wrote, byte by byte if asked, and collects what it would have got. */
async function replay(path: string, request: Buffer, responseLength: number, chunkLength: number): Promise<Buffer> {
	const socket = connect(path);
	await once(socket, 'connect');
	for (let start = 0; start < request.length; start += chunkLength) {
		socket.write(request.subarray(start, start + chunkLength));
	}

	const chunks: Buffer[] = [];
	for await (const chunk of socket as AsyncIterable<Buffer>) {
		chunks.push(chunk);
		if (chunks.reduce((sum, {length}) => sum + length, 0) >= responseLength) {
			break;
		}
	}

	return Buffer.concat(chunks);
}

for (const chunkLength of [1, 7, 100_000]) {
	test(`a real shim's recorded calls are answered byte for byte as recorded (chunks of ${chunkLength})`, async t => {
		const created: CreateSandbox[] = [];
		const seen: string[] = [];
		const agentSocketPath = method(hypervisor, 'CreateVM').responseDeserialize(
			responsePayload(recorded('createvm.response')),
		) as {agentSocketPath: string};
		const {path} = await serving(t, {
			create: async request => {
				created.push(request);
				return agentSocketPath;
			},
			start: async id => void seen.push(`start ${id}`),
			stop: async id => void seen.push(`stop ${id}`),
		});
		for (const call of ['createvm', 'startvm', 'stopvm']) {
			const response = recorded(`${call}.response`);
			t.deepEqual(await replay(path, recorded(`${call}.request`), response.length, chunkLength), response, call);
		}

		t.is(created.length, 1);
		t.like(created[0]?.annotations, {
			'io.katacontainers.config.hypervisor.default_vcpus': '2',
			'io.katacontainers.config.hypervisor.default_memory': '4096',
		});
		t.regex(created[0]?.netnsPath ?? '', /^\/var\/run\/netns\/cni-/);
		t.deepEqual(seen, [`start ${created[0]?.id ?? ''}`, `stop ${created[0]?.id ?? ''}`]);
	});
}

/** The payload field of a recorded response frame whose status is absent: 10 bytes of header, field 2. */
function responsePayload(frame: Buffer): Buffer {
	const [tag, length] = [frame[10], frame[11]];
	if (tag !== 0x12 || length === undefined || length > 127) {
		throw new Error('not the recorded response that this test knows');
	}

	return frame.subarray(12, 12 + length);
}

test("text and code of an error reach the caller; an unexpected error's text is only in the log", async t => {
	const {path, log} = await serving(t, {
		async start() {
			throw new AdaptorError({
				code: 'resource-exhausted',
				what: 'No room',
				where: {pool: 'default'},
				remedy: 'Make some.',
			});
		},
		async stop() {
			throw new TypeError('the password is hunter2');
		},
	});
	const client = clientAt(t, path);
	await t.throwsAsync(client.call(method(hypervisor, 'StartVM'), {id: 'a'}, {}, never), {
		code: 'resource-exhausted',
		message: 'No room (pool "default"). Make some.',
	} as never);
	const error = await t.throwsAsync(client.call(method(hypervisor, 'StopVM'), {id: 'a'}, {}, never));
	t.regex(error.message, /Internal error/);
	t.notRegex(error.message, /hunter2/);
	t.deepEqual(
		log.lines
			.filter(({message}) => message === 'call failed')
			.map(({level, fields}) => [level, fields.method, fields.sandboxId]),
		[
			['warn', 'StartVM', 'a'],
			['error', 'StopVM', 'a'],
		],
	);
});

test('Version and PodVMInfo are answered on the same socket, by one connection as by many', async t => {
	const {path} = await serving(t, {vmOf: async ({name, namespace}, wait) => `${namespace}/${name}/${wait}`});
	const client = clientAt(t, path);
	const answers = await Promise.all([
		client.call(method(hypervisor, 'Version'), {version: 'x'}, {}, never),
		client.call(method(podVmInfo, 'GetInfo'), {PodName: 'web', PodNamespace: 'shop', Wait: true}, {}, never),
		clientAt(t, path).call(method(podVmInfo, 'GetInfo'), {PodName: 'db', PodNamespace: 'shop'}, {}, never),
	]);
	t.deepEqual(answers, [{version: '0.0.0'}, {VMID: 'shop/web/true'}, {VMID: 'shop/db/false'}]);
});

test('a caller that hangs up or whose deadline passes aborts its call', async t => {
	const [first, second] = [gate(), gate()];
	const gates = [first, second];
	const {path} = await serving(t, {start: async (_id, signal) => gates.shift()?.pass(signal)});
	const hangsUp = new TtrpcClient(connect(path));
	const call = hangsUp.call(method(hypervisor, 'StartVM'), {id: 'a'}, {}, never);
	await first.entered;
	await hangsUp.close();
	await t.throwsAsync(call);
	await first.aborted;
	await t.throwsAsync(clientAt(t, path).call(method(hypervisor, 'StartVM'), {id: 'a'}, {timeoutMs: 50}, never), {
		code: 'deadline-exceeded',
	} as never);
	await second.aborted;
	first.open();
	second.open();
	t.pass();
});

test('disposing lets a call finish, takes no new connection, and removes the socket', async t => {
	const held = gate();
	const {path, server} = await serving(t, {start: async (_id, signal) => held.pass(signal)}, 60_000);
	const call = clientAt(t, path).call(method(hypervisor, 'StartVM'), {id: 'a'}, {}, never);
	await held.entered;
	const disposed = server[Symbol.asyncDispose]();
	const late = connect(path);
	const [error] = (await once(late, 'error')) as [NodeJS.ErrnoException];
	t.true(['ENOENT', 'ECONNREFUSED'].includes(error.code ?? ''), error.code);
	held.open();
	t.deepEqual(await call, {});
	await disposed;
});

test('a call that waits for the VM of a pod is answered when the daemon stops, and does not delay the stop', async t => {
	const waiting = Promise.withResolvers<undefined>();
	const {path, server} = await serving(
		t,
		{
			async vmOf(_pod, _wait, signal) {
				waiting.resolve(undefined);
				return abortable(Promise.withResolvers<never>().promise, signal);
			},
		},
		60_000,
	);
	const call = t.throwsAsync(
		clientAt(t, path).call(
			method(podVmInfo, 'GetInfo'),
			{PodName: 'web', PodNamespace: 'shop', Wait: true},
			{},
			never,
		),
		{code: 'unavailable', message: /daemon is stopping/} as never,
	);
	await waiting.promise;
	await server[Symbol.asyncDispose]();
	await call;
});

test('garbage ends its own connection only', async t => {
	const {path} = await serving(t, {});
	const client = clientAt(t, path);
	for (const garbage of [
		'GET / HTTP/1.1\r\n\r\n',
		'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense',
		Buffer.alloc(64, 0xff),
	]) {
		const socket = connect(path);
		socket.on('error', () => undefined);
		socket.end(garbage);
		await buffer(socket).catch(() => undefined);
	}

	t.deepEqual(await client.call(method(hypervisor, 'Version'), {version: ''}, {}, never), {version: '0.0.0'});
});

import {once} from 'node:events';
import {connect} from 'node:net';
import {
	Client,
	credentials,
	makeGenericClientConstructor,
	status,
	type CallOptions,
	type ServiceError,
} from '@grpc/grpc-js';
import {loadSync, type ServiceDefinition} from '@grpc/proto-loader';
import {service as healthService} from 'grpc-health-check';
import test, {type ExecutionContext} from 'ava';
import {loadContract} from '../../src/api/contract.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {TtrpcClient, type ClientMethod} from '../../src/ttrpc/client.ts';
import {gate, never, serving} from './harness.ts';

const {hypervisor, podVmInfo} = loadContract();

type Unary = (
	request: object,
	options: CallOptions,
	callback: (error: ServiceError | null, response: object) => void,
) => {cancel: () => void};
type AnyClient = Client & Readonly<Record<string, Unary>>;

/** Typed by hand: generic clients know their methods only at run time. */
function clientOf(t: ExecutionContext, definition: ServiceDefinition, path: string): AnyClient {
	const client = new (makeGenericClientConstructor(definition, 'test'))(
		`unix:${path}`,
		credentials.createInsecure(),
	) as AnyClient;
	t.teardown(() => client.close());
	return client;
}

async function callOn(client: AnyClient, method: string, request: object, options: CallOptions = {}): Promise<object> {
	return new Promise((resolve, reject) => {
		const call: Unary | undefined = client[method]?.bind(client);
		call?.(request, options, (error, response) => (error === null ? resolve(response) : reject(error)));
	});
}

function caller(
	t: ExecutionContext,
	definition: ServiceDefinition,
	path: string,
): (method: string, request: object) => Promise<object> {
	const client = clientOf(t, definition, path);
	return async (method, request) => callOn(client, method, request);
}

test('the same calls are answered over gRPC on the same socket', async t => {
	const {path} = await serving(t, {
		create: async ({id, annotations, netnsPath}) => ({
			agentSocketPath: `/${id}/${annotations['a'] ?? ''}${netnsPath}`,
		}),
		vmOf: async ({name}) => `vm of ${name}`,
	});
	const call = caller(t, hypervisor, path);
	t.deepEqual(await call('CreateVM', {id: 'x', annotations: {a: 'b'}, networkNamespacePath: '/ns'}), {
		agentSocketPath: '/x/b/ns',
	});
	t.deepEqual(await call('Version', {version: ''}), {version: '0.0.0'});
	t.deepEqual(await caller(t, podVmInfo, path)('GetInfo', {PodName: 'web', PodNamespace: 'shop'}), {
		VMID: 'vm of web',
	});
});

test("errors travel as their status code with the operator's text", async t => {
	const {path} = await serving(t, {
		async start() {
			throw new AdaptorError({code: 'failed-precondition', what: 'Can\'t: ünïcode & "quotes"', remedy: 'Do.'});
		},
	});
	const error = await t.throwsAsync<ServiceError>(caller(t, hypervisor, path)('StartVM', {id: 'x'}));
	t.is(error.code, status.FAILED_PRECONDITION);
	t.is(error.details, 'Can\'t: ünïcode & "quotes". Do.');
});

test('a caller that cancels aborts its call', async t => {
	const held = gate();
	const {path} = await serving(t, {start: async (_id, signal) => held.pass(signal)});
	const client = clientOf(t, hypervisor, path);
	const ended = Promise.withResolvers<ServiceError | null>();
	const call = client['StartVM']?.({id: 'x'}, {}, error => ended.resolve(error));
	await held.entered;
	call?.cancel();
	await held.aborted;
	t.is((await ended.promise)?.code, status.CANCELLED);
	held.open();
});

test('the health service reports all services as SERVING', async t => {
	const {path} = await serving(t, {});
	const call = caller(t, healthService as unknown as ServiceDefinition, path);
	for (const service of ['', 'hypervisor.Hypervisor', 'podvminfo.PodVMInfo']) {
		t.like(await call('check', {service}), {status: 'SERVING'});
	}

	const error = await t.throwsAsync<ServiceError>(call('check', {service: 'no.such'}));
	t.is(error.code, status.NOT_FOUND);
});

test('reflection lists the services', async t => {
	const {path} = await serving(t, {});
	const definition = loadSync('reflection/v1/reflection.proto', {
		includeDirs: [new URL('../../node_modules/@grpc/reflection/build/proto/grpc/', import.meta.url).pathname],
	});
	const client = new (makeGenericClientConstructor(
		definition['grpc.reflection.v1.ServerReflection'] as ServiceDefinition,
		'test',
	))(`unix:${path}`, credentials.createInsecure()) as Client &
		Readonly<Record<string, () => NodeJS.ReadWriteStream & {write: (request: object) => void}>>;
	t.teardown(() => client.close());
	const stream = client['ServerReflectionInfo']?.();
	stream?.write({listServices: ''});
	const [response] = (await once(stream as NodeJS.ReadWriteStream, 'data')) as [
		{listServicesResponse: {service: Array<{name: string}>}},
	];
	stream?.end();
	const names = response.listServicesResponse.service.map(({name}) => name);
	t.true(names.includes('hypervisor.Hypervisor') && names.includes('podvminfo.PodVMInfo'), names.join(', '));
});

test("a gRPC client's first bytes may come one at a time", async t => {
	const {path} = await serving(t, {});
	const socket = connect(path);
	t.teardown(() => void socket.destroy());
	for (const byte of Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u0004\0\0\0\0\0', 'latin1')) {
		socket.write(Buffer.of(byte));
	}

	const [first] = (await once(socket, 'data')) as [Buffer];
	// An HTTP/2 server begins with its SETTINGS frame (RFC 9113, 3.4): type 4 in the frame's fourth byte.
	t.is(first[3], 4);
});

test('a call whose deadline passes is aborted, and its caller gets DEADLINE_EXCEEDED', async t => {
	const held = gate();
	const {path} = await serving(t, {start: async (_id, signal) => held.pass(signal)});
	const client = clientOf(t, hypervisor, path);
	const reached: true[] = [];
	void held.entered.then(() => reached.push(true));
	// The first connection loads gRPC, which is no part of the call's time.
	await callOn(client, 'Version', {version: ''});
	// Where the process stands still for a moment the time may be up before the call has gone out: then again, with
	// more of it.
	for (let timeoutMs = 100; reached.length === 0; timeoutMs *= 2) {
		const error = await t.throwsAsync<ServiceError>(
			callOn(client, 'StartVM', {id: 'x'}, {deadline: Date.now() + timeoutMs}),
		);
		t.is(error.code, status.DEADLINE_EXCEEDED);
		// Comes behind it, on the same connection.
		await callOn(client, 'Version', {version: ''});
	}

	t.is(((await held.aborted) as AdaptorError).code, 'cancelled');
	held.open();
});

test('disposing closes idle connections at once, while a ttrpc call may still finish', async t => {
	const held = gate();
	const {path, server} = await serving(t, {start: async (_id, signal) => held.pass(signal)}, 60_000);
	const ttrpc = new TtrpcClient(connect(path));
	t.teardown(async () => ttrpc.close());
	const startVm = hypervisor['StartVM'];
	const call = ttrpc.call(startVm as unknown as ClientMethod<object, object>, {id: 'a'}, {}, never);
	await held.entered;
	await caller(t, hypervisor, path)('Version', {version: ''});
	const closed = ['P', 'PRI ', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u0004\0\0\0\0\0'].map(async said => {
		const socket = connect(path);
		t.teardown(() => void socket.destroy());
		socket
			.on('error', () => undefined)
			.resume()
			.write(said);
		await once(socket, 'close');
	});
	// Answered after those were accepted, for one listener takes them in their order.
	await caller(t, hypervisor, path)('Version', {version: ''});
	const disposed = server[Symbol.asyncDispose]();
	await Promise.all(closed);
	held.open();
	await call;
	await disposed;
	t.pass();
});

test('a gRPC call that does not finish in the time to drain is aborted, and disposing ends', async t => {
	const held = gate();
	const {path, server} = await serving(t, {start: async (_id, signal) => held.pass(signal)}, 50);
	const call = t.throwsAsync<ServiceError>(caller(t, hypervisor, path)('StartVM', {id: 'x'}));
	await held.entered;
	await server[Symbol.asyncDispose]();
	t.is(((await held.aborted) as AdaptorError).code, 'cancelled');
	t.is((await call).code, status.CANCELLED);
	held.open();
});

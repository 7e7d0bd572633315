import {once} from 'node:events';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {encodeFrame, frameFlag, frameType, headerLength, maxMessageLength} from '../../src/ttrpc/frame.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import type {CallContext} from '../../src/ttrpc/service.ts';
import {recorded} from './conversation.ts';
import {serve} from './peers.ts';

const version = async (): Promise<object> => ({version: '1'});
const {promise: never} = Promise.withResolvers<object>();

const conversations = {
	createvm: {
		CreateVM: async () => ({
			agentSocketPath:
				'/run/peerpod/pods/e5fcf8e345ea2177f4d3886f0a81e7d7e0e290d92705acd012e8996f2dba127b/agent.ttrpc',
		}),
	},
	startvm: {StartVM: async () => ({})},
	stopvm: {StopVM: async () => ({})},
} as const;
for (const [name, handlers] of Object.entries(conversations)) {
	test(`the recorded ${name} request is answered with the recorded bytes`, async t => {
		const peer = await serve(t, handlers);
		const raw = await peer.raw();
		raw.socket.write(recorded(`${name as keyof typeof conversations}.request.bin`));
		const [frame] = await raw.frames(1);
		t.deepEqual(frame?.bytes, recorded(`${name as keyof typeof conversations}.response.bin`));
	});
}

test('a handler sees the recorded CreateVM as the shim meant it', async t => {
	const seen: Array<[object, CallContext]> = [];
	const peer = await serve(t, {
		async CreateVM(request: object, context) {
			seen.push([request, context]);
			return {};
		},
	});
	const raw = await peer.raw();
	raw.socket.write(recorded('createvm.request.bin'));
	await raw.frames(1);
	const [[request, {service, method, metadata}] = [{}, {} as CallContext]] = seen;
	t.like(request, {
		id: 'e5fcf8e345ea2177f4d3886f0a81e7d7e0e290d92705acd012e8996f2dba127b',
		networkNamespacePath: '/var/run/netns/cni-045244ab-0ed0-18eb-db32-cee03906656a',
		annotations: {
			'io.kubernetes.cri.sandbox-name': 'demo',
			'io.kubernetes.cri.sandbox-namespace': 'default',
			'io.katacontainers.config.hypervisor.default_vcpus': '2',
			'io.katacontainers.config.hypervisor.default_memory': '4096',
			'io.katacontainers.config.hypervisor.machine_type': '',
		},
	});
	t.deepEqual([service, method], ['hypervisor.Hypervisor', 'CreateVM']);
	t.deepEqual([...metadata], [['containerd-namespace-ttrpc', ['k8s.io']]]);
});

test('a request that arrives byte by byte is answered', async t => {
	const peer = await serve(t, conversations.startvm);
	const raw = await peer.raw();
	raw.socket.setNoDelay(true);
	for (const byte of recorded('startvm.request.bin')) {
		await new Promise(resolve => raw.socket.write(Buffer.of(byte), resolve));
	}

	t.deepEqual((await raw.frames(1))[0]?.bytes, recorded('startvm.response.bin'));
});

test('bytes that were read and unshifted before the server got its socket are served', async t => {
	const peer = await serve(t, conversations.startvm, {}, (server, socket) => {
		socket.once('data', chunk => {
			socket.pause();
			socket.unshift(chunk);
			server.serve(socket);
		});
	});
	const raw = await peer.raw();
	raw.socket.write(recorded('startvm.request.bin'));
	t.deepEqual((await raw.frames(1))[0]?.bytes, recorded('startvm.response.bin'));
});

test('calls of one connection run at once and are answered as they end', async t => {
	const gates = [Promise.withResolvers<object>(), Promise.withResolvers<object>(), Promise.withResolvers<object>()];
	let begun = 0;
	const peer = await serve(t, {Version: async () => gates[begun++]?.promise ?? never});
	const raw = await peer.raw();
	raw.request({}, {streamId: 1});
	raw.request({}, {streamId: 3});
	raw.request({}, {streamId: 5});
	raw.request({method: 'CreateVM'}, {streamId: 7});
	await raw.frames(1);
	t.is(begun, 3);
	for (const [index, answered] of [
		[2, 2],
		[0, 3],
		[1, 4],
	] as const) {
		gates[index]?.resolve({version: String(index)});
		await raw.frames(answered);
	}

	t.deepEqual(
		(await raw.codes(4)).map(([streamId]) => streamId),
		[7, 5, 1, 3],
	);
});

test('an unknown service and an unknown method are UNIMPLEMENTED, by name, and the connection lives', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	raw.request({service: 'other.Service'}, {streamId: 1});
	raw.request({method: 'Other'}, {streamId: 3});
	raw.request({method: 'StopVM'}, {streamId: 5});
	raw.request({method: 'toString', service: '__proto__'}, {streamId: 7});
	raw.request({}, {streamId: 9});
	const responses = await raw.responses(5);
	t.deepEqual(
		responses.map(([, {status}]) => status?.code),
		[12, 12, 12, 12, undefined],
	);
	t.regex(responses[0]?.[1].status?.message ?? '', /\/other\.Service\/Version/);
});

test('an oversized request is RESOURCE_EXHAUSTED on its stream, and the connection lives', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	raw.socket.write(encodeFrame({streamId: 1, type: frameType.request, flags: 0}, Buffer.alloc(maxMessageLength + 1)));
	raw.request({}, {streamId: 3});
	t.deepEqual(await raw.codes(2), [
		[1, statusCode.resourceExhausted],
		[3, 0],
	]);
});

test('a response over the limit is RESOURCE_EXHAUSTED on its stream, and the connection lives', async t => {
	const peer = await serve(
		t,
		{Version: async ({version: length}: {version: string}) => ({version: 'x'.repeat(Number(length))})},
		{maxMessageLength: 1000},
	);
	const raw = await peer.raw();
	raw.request({payload: Buffer.from('0a0431303030', 'hex')}, {streamId: 1});
	raw.request({payload: Buffer.from('0a03393930', 'hex')}, {streamId: 3});
	t.deepEqual(await raw.codes(2), [
		[1, statusCode.resourceExhausted],
		[3, 0],
	]);
	t.is((await raw.frames(2))[1]?.message.length, 996);
});

test('a malformed request, and a malformed payload, are INVALID_ARGUMENT, and the connection lives', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	raw.socket.write(encodeFrame({streamId: 1, type: frameType.request, flags: 0}, Buffer.from('0aff', 'hex')));
	raw.request({payload: Buffer.from('0aff', 'hex')}, {streamId: 3});
	raw.request({}, {streamId: 5});
	t.deepEqual(
		new Map(await raw.codes(3)),
		new Map([
			[1, statusCode.invalidArgument],
			[3, statusCode.invalidArgument],
			[5, 0],
		]),
	);
});

test('even stream ids are INVALID_ARGUMENT', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	raw.request({}, {streamId: 2});
	raw.request({}, {streamId: 0});
	t.deepEqual(await raw.codes(2), [
		[2, statusCode.invalidArgument],
		[0, statusCode.invalidArgument],
	]);
});

test('a stream id in use is INVALID_ARGUMENT, and the call that uses it goes on', async t => {
	const gate = Promise.withResolvers<object>();
	let calls = 0;
	const peer = await serve(t, {
		Version: async () => {
			calls++;
			return gate.promise;
		},
	});
	const raw = await peer.raw();
	raw.request({}, {streamId: 7});
	raw.request({}, {streamId: 7});
	t.deepEqual(await raw.codes(1), [[7, statusCode.invalidArgument]]);
	gate.resolve({});
	t.deepEqual(await raw.codes(2), [
		[7, statusCode.invalidArgument],
		[7, 0],
	]);
	t.is(calls, 1);
});

test('stream ids may come in any order, and again after their call has ended', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	for (const [index, streamId] of [9, 3, 0xff_ff_ff_ff, 3].entries()) {
		raw.request({}, {streamId});
		t.deepEqual((await raw.codes(index + 1)).at(-1), [streamId, 0]);
	}
});

test('a request with further data is UNIMPLEMENTED; its data and unknown frame types are ignored', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	raw.request({}, {streamId: 1, flags: frameFlag.remoteOpen});
	raw.socket.write(encodeFrame({streamId: 1, type: frameType.data, flags: 0}, Buffer.from('data')));
	raw.socket.write(
		encodeFrame(
			{streamId: 1, type: frameType.data, flags: frameFlag.remoteClosed | frameFlag.noData},
			Buffer.alloc(0),
		),
	);
	raw.socket.write(encodeFrame({streamId: 1, type: frameType.response, flags: 0}, Buffer.alloc(0)));
	raw.socket.write(encodeFrame({streamId: 5, type: 77, flags: 0}, Buffer.alloc(10)));
	raw.request({}, {streamId: 3, flags: frameFlag.remoteClosed});
	t.deepEqual(await raw.codes(2), [
		[1, statusCode.unimplemented],
		[3, 0],
	]);
});

test('more calls than allowed on a connection are RESOURCE_EXHAUSTED, until one ends', async t => {
	const gates = new Map<string, PromiseWithResolvers<object>>();
	const peer = await serve(
		t,
		{
			Version: async ({version: name}: {version: string}) => {
				const gate = Promise.withResolvers<object>();
				gates.set(name, gate);
				return gate.promise;
			},
		},
		{maxStreams: 2},
	);
	const raw = await peer.raw();
	const named = (name: string): Buffer => Buffer.from(`\n\u0001${name}`);
	raw.request({payload: named('a')}, {streamId: 1});
	raw.request({payload: named('b')}, {streamId: 3});
	raw.request({payload: named('c')}, {streamId: 5});
	t.deepEqual(await raw.codes(1), [[5, statusCode.resourceExhausted]]);
	gates.get('a')?.resolve({});
	await raw.frames(2);
	raw.request({payload: named('d')}, {streamId: 7});
	raw.request({method: 'Other'}, {streamId: 9});
	t.deepEqual((await raw.codes(3)).at(-1), [9, statusCode.resourceExhausted]);
	gates.get('d')?.resolve({});
	t.deepEqual((await raw.codes(4)).at(-1), [7, 0]);
});

test('a deadline aborts the handler and is answered once; what the handler does then is ignored', async t => {
	const gate = Promise.withResolvers<object>();
	const aborted = Promise.withResolvers<unknown>();
	const peer = await serve(t, {
		async StartVM(_request: object, {signal}) {
			signal.addEventListener('abort', () => aborted.resolve(signal.reason));
			return gate.promise;
		},
		Version: version,
	});
	const raw = await peer.raw();
	raw.request({method: 'StartVM', timeoutNano: 20_000_000n}, {streamId: 1});
	const [response] = await raw.responses(1);
	t.is(response?.[1].status?.code, statusCode.deadlineExceeded);
	t.regex(response?.[1].status?.message ?? '', /20 ms.*\/hypervisor\.Hypervisor\/StartVM/);
	t.like(await aborted.promise, {code: 'deadline-exceeded'});
	gate.resolve({});
	raw.request({}, {streamId: 3});
	t.deepEqual(await raw.codes(2), [
		[1, statusCode.deadlineExceeded],
		[3, 0],
	]);
});

test('a call whose deadline has passed never reaches the handler; a call with a deadline in 292 years does', async t => {
	const peer = await serve(t, {Version: version});
	const raw = await peer.raw();
	raw.request({timeoutNano: -1n}, {streamId: 1});
	raw.request({timeoutNano: -(2n ** 63n)}, {streamId: 3});
	raw.request({timeoutNano: 2n ** 63n - 1n}, {streamId: 5});
	t.deepEqual(await raw.codes(3), [
		[1, statusCode.deadlineExceeded],
		[3, statusCode.deadlineExceeded],
		[5, 0],
	]);
});

for (const [how, leave] of Object.entries({'closes its connection': 'destroy', 'ends its side': 'end'} as const)) {
	test(`a caller that ${how} aborts its calls`, async t => {
		const begun = Promise.withResolvers<AbortSignal>();
		const peer = await serve(t, {
			async Version(_request: object, {signal}) {
				begun.resolve(signal);
				return never;
			},
		});
		const raw = await peer.raw();
		raw.request({});
		const signal = await begun.promise;
		t.false(signal.aborted);
		raw.socket[leave]();
		if (!signal.aborted) {
			await once(signal, 'abort');
		}

		t.like(signal.reason, {code: 'cancelled'});
	});
}

test('an error becomes the status that toStatus gives; any other tells the peer nothing', async t => {
	const peer = await serve(t, {
		StartVM: async () => {
			throw new AdaptorError({code: 'not-found', what: 'No such sandbox'});
		},
		StopVM: async () => {
			throw new Error('the password is swordfish');
		},
		Version() {
			// eslint-disable-next-line @typescript-eslint/only-throw-error -- a careless handler may do it
			throw 'swordfish';
		},
	});
	const raw = await peer.raw();
	for (const [index, method] of ['StartVM', 'StopVM', 'Version'].entries()) {
		raw.request({method}, {streamId: index * 2 + 1});
	}

	const responses = new Map(await raw.responses(3));
	t.deepEqual(responses.get(1)?.status, {code: statusCode.notFound, message: 'No such sandbox'});
	for (const streamId of [3, 5]) {
		t.is(responses.get(streamId)?.status?.code, statusCode.unknown);
		t.notRegex(responses.get(streamId)?.status?.message ?? 'swordfish', /swordfish|at .*ts/);
	}
});

test('a toStatus that throws, or says OK, still gives an error to the peer', async t => {
	for (const toStatus of [
		() => ({code: 0, message: ''}),
		() => {
			throw new Error('confused');
		},
	]) {
		const peer = await serve(
			t,
			{
				Version: async () => {
					throw new Error('failed');
				},
			},
			{toStatus},
		);
		const raw = await peer.raw();
		raw.request({});
		t.deepEqual(await raw.codes(1), [[1, statusCode.unknown]]);
	}
});

test('requests wait while the peer leaves its responses unread, and all are answered once it reads', async t => {
	const payload = 'x'.repeat(100_000);
	let calls = 0;
	const peer = await serve(t, {
		Version: async () => {
			calls++;
			return {version: payload};
		},
	});
	const raw = await peer.raw();
	raw.socket.pause();
	const total = 500;
	const padding = {key: 'padding', value: 'x'.repeat(20_000)};
	for (let index = 0; index < total; index++) {
		raw.request({metadata: [padding]}, {streamId: index * 2 + 1});
	}

	// Held: the server's socket is paused with something left to write. All answers together would be 50 MB.
	const [socket] = peer.accepted;
	while (socket?.isPaused() === false && calls < total) {
		await new Promise(resolve => setImmediate(resolve));
	}

	await new Promise(resolve => setImmediate(resolve));
	t.true(calls < 20, `${calls} calls were let in`);
	raw.socket.resume();
	const frames = await raw.frames(total);
	t.is(calls, total);
	t.true(frames.every(frame => frame.bytes.length > headerLength + payload.length));
});

test('a method is registered once', async t => {
	const peer = await serve(t, {Version: version});
	t.throws(
		() =>
			peer.server.register({
				definition: {
					Version: {
						path: '/hypervisor.Hypervisor/Version',
						requestDeserialize: () => ({}),
						responseSerialize: () => Buffer.alloc(0),
					},
				},
				handlers: {Version: version},
			}),
		{message: /registered already/},
	);
});

test('a method that streams is not served', async t => {
	const peer = await serve(t, {});
	peer.server.register({
		definition: {
			Watch: {
				path: '/s.S/Watch',
				responseStream: true,
				requestDeserialize: () => ({}),
				responseSerialize: () => Buffer.alloc(0),
			},
		},
		handlers: {Watch: version},
	});
	const raw = await peer.raw();
	raw.request({service: 's.S', method: 'Watch'});
	t.deepEqual(await raw.codes(1), [[1, statusCode.unimplemented]]);
});

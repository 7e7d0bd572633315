import {once} from 'node:events';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {connect, TtrpcClient} from '../../src/ttrpc/client.ts';
import {encodeFrame, Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {decodeRequest, encodeResponse} from '../../src/ttrpc/message.ts';
import {TtrpcError} from '../../src/ttrpc/status.ts';
import {method, serve} from './peers.ts';

const forever = new AbortController().signal;
const {promise: never} = Promise.withResolvers<object>();
const empty = Buffer.alloc(0);

/** A client whose server is a script: it is given each request's frame and what writes to the client. */
async function scripted(
	t: ExecutionContext,
	onRequest: (frame: Frame, write: (bytes: Buffer) => void, end: () => void) => void,
	options = {},
): Promise<TtrpcClient> {
	const peer = await serve(t, {}, {}, (_server, socket) => {
		const decoder = new FrameDecoder();
		t.teardown(() => socket.destroy());
		socket.on('error', () => undefined);
		socket.on('data', chunk => {
			for (const frame of decoder.push(chunk)) {
				if (frame instanceof Frame) {
					onRequest(
						frame,
						bytes => void socket.write(bytes),
						() => socket.end(),
					);
				}
			}
		});
	});
	return peer.client(options);
}

const response = (streamId: number, payload = empty): Buffer =>
	encodeFrame({streamId, type: frameType.response, flags: 0}, encodeResponse({payload}));

test('a call carries request, deadline and metadata, and returns the response', async t => {
	const seen: unknown[] = [];
	const peer = await serve(t, {
		async CreateVM(request: object, {metadata}) {
			seen.push({...request}, Object.fromEntries(metadata));
			return {agentSocketPath: '/agent'};
		},
	});
	const client = await peer.client();
	const request = {id: 'a', annotations: {k: 'v'}, networkNamespacePath: '/n'};
	const answer = await client.call(
		method('CreateVM'),
		request,
		{timeoutMs: 60_000, metadata: {one: '1', two: ['2', '3']}},
		forever,
	);
	t.deepEqual({...answer}, {agentSocketPath: '/agent'});
	t.deepEqual(seen, [request, {one: ['1'], two: ['2', '3']}]);
});

test('stream ids are odd and grow, deadlines are nanoseconds', async t => {
	const seen: Array<[number, bigint]> = [];
	const client = await scripted(t, (frame, write) => {
		seen.push([frame.streamId, decodeRequest(frame.message).timeoutNano]);
		write(response(frame.streamId));
	});
	await client.call(method('StopVM'), {}, {}, forever);
	await client.call(method('StopVM'), {}, {timeoutMs: 600_000}, forever);
	await client.call(method('StopVM'), {}, {timeoutMs: 60_000.5}, forever);
	t.deepEqual(seen, [
		[1, 0n],
		[3, 600_000_000_000n],
		[5, 60_000_500_000n],
	]);
});

test('a thousand concurrent calls each get their own answer', async t => {
	const peer = await serve(t, {
		async Version({version}: {version: string}) {
			for (let turns = Number(version) % 7; turns > 0; turns--) {
				await new Promise(resolve => setImmediate(resolve));
			}

			return {version};
		},
	});
	const client = await peer.client();
	const versions = Array.from({length: 1000}, (_, index) => String(index));
	const answers = await Promise.all(
		versions.map(async version => client.call(method('Version'), {version}, {}, forever)),
	);
	t.deepEqual(
		answers.map(answer => ({...answer})),
		versions.map(version => ({version})),
	);
});

test('answers out of order reach their callers', async t => {
	const frames: Frame[] = [];
	const client = await scripted(t, (frame, write) => {
		frames.push(frame);
		if (frames.length === 3) {
			for (const {streamId} of frames.toReversed()) {
				write(response(streamId, Buffer.from(`\n\u0001${streamId}`)));
			}
		}
	});
	const answers = await Promise.all([1, 3, 5].map(async () => client.call(method('Version'), {}, {}, forever)));
	t.deepEqual(
		answers.map(answer => ({...answer})),
		[{version: '1'}, {version: '3'}, {version: '5'}],
	);
});

test('a status is an error with its code, message and details', async t => {
	const details = [{typeUrl: 'type.example/x', value: Buffer.from('why')}];
	const client = await scripted(t, ({streamId}, write) => {
		write(
			encodeFrame(
				{streamId, type: frameType.response, flags: 0},
				encodeResponse({status: {code: 5, message: 'no such VM', details}, payload: empty}),
			),
		);
	});
	const error = await t.throwsAsync(client.call(method('StopVM'), {}, {}, forever), {
		instanceOf: TtrpcError,
		message: 'no such VM',
	});
	t.is(error.code, 'not-found');
	t.deepEqual(error.status, {code: 5, message: 'no such VM', details});
});

test('a lost connection fails all calls at once as unavailable, and every later one', async t => {
	let requests = 0;
	const client = await scripted(t, (_frame, _write, end) => {
		if (++requests === 3) {
			end();
		}
	});
	const calls = [1, 2, 3].map(async () => client.call(method('StartVM'), {}, {}, forever));
	for (const call of calls) {
		t.is((await t.throwsAsync(call, {instanceOf: AdaptorError})).code, 'unavailable');
	}

	const late = await t.throwsAsync(client.call(method('StartVM'), {}, {}, forever), {
		instanceOf: AdaptorError,
		message: /closed the connection.*StartVM/,
	});
	t.is(late.code, 'unavailable');
	await client.closed;
});

test('an aborted call ends at once with the reason; its late response is ignored', async t => {
	const late = Promise.withResolvers<() => void>();
	const client = await scripted(t, ({streamId}, write) => {
		if (streamId === 1) {
			late.resolve(() => write(response(streamId)));
		} else {
			write(response(streamId));
		}
	});
	const controller = new AbortController();
	const call = client.call(method('StartVM'), {}, {}, controller.signal);
	const answerLate = await late.promise;
	controller.abort(new Error('enough'));
	await t.throwsAsync(call, {message: 'enough'});
	answerLate();
	await t.notThrowsAsync(client.call(method('StopVM'), {}, {}, forever));
});

test('an aborted signal makes no call', async t => {
	const client = await scripted(t, () => t.fail());
	await t.throwsAsync(client.call(method('StopVM'), {}, {}, AbortSignal.abort(new Error('before'))), {
		message: 'before',
	});
});

test('a deadline ends a call that the server leaves open, and names the method', async t => {
	const client = await scripted(t, () => undefined);
	const error = await t.throwsAsync(client.call(method('StartVM'), {}, {timeoutMs: 5}, forever), {
		instanceOf: AdaptorError,
		message: /5 ms.*\/hypervisor\.Hypervisor\/StartVM/,
	});
	t.is(error.code, 'deadline-exceeded');
	await t.throwsAsync(client.call(method('StartVM'), {}, {timeoutMs: 0}, forever), {message: /Timed out/});
});

test('a message over the limit is resource-exhausted, both ways, and the connection lives', async t => {
	const peer = await serve(t, {
		Version: async ({version}: {version: string}) => ({version: 'x'.repeat(Number(version))}),
	});
	const client = await peer.client({maxMessageLength: 1000});
	for (const version of ['x'.repeat(1000), '2000']) {
		const error = await t.throwsAsync(client.call(method('Version'), {version}, {}, forever), {
			instanceOf: AdaptorError,
			message: /exceeds the limit of 1000/,
		});
		t.is(error.code, 'resource-exhausted');
	}

	t.deepEqual({...(await client.call(method('Version'), {version: '1'}, {}, forever))}, {version: 'x'});
});

const nonsense = {
	'a malformed response': encodeFrame({streamId: 1, type: frameType.response, flags: 0}, Buffer.from('0aff', 'hex')),
	'a malformed payload': response(1, Buffer.from('0aff', 'hex')),
	'data in place of a response': encodeFrame({streamId: 1, type: frameType.data, flags: 0}, empty),
};
for (const [what, bytes] of Object.entries(nonsense)) {
	test(`${what} fails its call alone`, async t => {
		const client = await scripted(t, ({streamId}, write) => write(streamId === 1 ? bytes : response(streamId)));
		const error = await t.throwsAsync(client.call(method('Version'), {}, {}, forever), {
			instanceOf: AdaptorError,
			message: /malformed/,
		});
		t.is(error.code, 'internal');
		await t.notThrowsAsync(client.call(method('Version'), {}, {}, forever));
	});
}

test('a server and a client that both send more than the socket buffers hold do not block each other', async t => {
	const peer = await serve(t, {Version: async ({version}: {version: string}) => ({version})});
	const client = await peer.client();
	const version = 'x'.repeat(1_000_000);
	const answers = await Promise.all(
		Array.from({length: 20}, async () => client.call(method('Version'), {version}, {}, forever)),
	);
	t.true(answers.every(answer => (answer as {version: string}).version.length === version.length));
});

test('connecting to nobody is unavailable and says where', async t => {
	const error = await t.throwsAsync(connect('/nonexistent/socket', forever), {
		instanceOf: AdaptorError,
		message: /\/nonexistent\/socket/,
	});
	t.is(error.code, 'unavailable');
	await t.throwsAsync(connect('/nonexistent/socket', AbortSignal.abort(new Error('no'))), {message: 'no'});
});

test('a call leaves no listener behind, on socket or signal', async t => {
	const peer = await serve(t, {Version: async () => ({}), StartVM: async () => never});
	const client = await peer.client();
	await client.call(method('Version'), {}, {timeoutMs: 60_000}, forever);
	const [socket] = peer.accepted;
	const counts = (): number[] => (socket?.eventNames() ?? []).map(name => socket?.listenerCount(name as string) ?? 0);
	const before = counts();
	const controller = new AbortController();
	const calls = Array.from({length: 50}, async () =>
		client.call(method('Version'), {}, {timeoutMs: 60_000}, controller.signal),
	);
	await Promise.all(calls);
	t.deepEqual(counts(), before);
	await client.close();
	if (socket?.closed === false) {
		await once(socket, 'close');
	}

	for (const event of ['data', 'drain', 'error'] as const) {
		t.is(socket?.listenerCount(event), 0);
	}
});

import {once} from 'node:events';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {method, serve} from './peers.ts';

const forever = new AbortController().signal;
const {promise: never} = Promise.withResolvers<object>();

test('a draining server answers the running call, refuses a new one, then closes the connection', async t => {
	const gate = Promise.withResolvers<object>();
	const begun = Promise.withResolvers<undefined>();
	const peer = await serve(t, {
		async StartVM() {
			begun.resolve(undefined);
			return gate.promise;
		},
		Version: async () => ({}),
	});
	const raw = await peer.raw();
	const closed = once(raw.socket, 'close');
	raw.request({method: 'StartVM'}, {streamId: 1});
	await begun.promise;
	const drained = peer.server.drain(forever);
	raw.request({}, {streamId: 3});
	t.deepEqual(await raw.codes(1), [[3, statusCode.unavailable]]);
	gate.resolve({});
	await drained;
	t.deepEqual(await raw.codes(2), [
		[3, statusCode.unavailable],
		[1, 0],
	]);
	await closed;
});

test('draining ends idle connections at once, and destroys connections that are accepted later', async t => {
	const peer = await serve(t, {Version: async () => ({})});
	const client = await peer.client();
	await client.call(method('Version'), {}, {}, forever);
	await peer.server.drain(forever);
	await client.closed;
	const late = await peer.client();
	await late.closed;
	t.pass();
});

test('draining waits for a handler that goes on after its deadline', async t => {
	const gate = Promise.withResolvers<object>();
	const peer = await serve(t, {StartVM: async () => gate.promise});
	const raw = await peer.raw();
	raw.request({method: 'StartVM', timeoutNano: 1_000_000n});
	t.deepEqual(await raw.codes(1), [[1, statusCode.deadlineExceeded]]);
	const drained = peer.server.drain(forever);
	t.false(peer.accepted[0]?.writableEnded);
	gate.resolve({});
	await drained;
	t.true(peer.accepted[0]?.writableEnded);
	t.is(raw.received.length, 1);
});

test('a drain that is aborted closes, and aborts the handlers', async t => {
	const begun = Promise.withResolvers<AbortSignal>();
	const peer = await serve(t, {
		async StartVM(_request: object, {signal}) {
			begun.resolve(signal);
			return never;
		},
	});
	const client = await peer.client();
	const call = t.throwsAsync(client.call(method('StartVM'), {}, {}, forever), {instanceOf: AdaptorError});
	const signal = await begun.promise;
	const controller = new AbortController();
	const drained = peer.server.drain(controller.signal);
	t.false(signal.aborted);
	controller.abort();
	await drained;
	t.like(signal.reason, {code: 'cancelled'});
	t.is((await call).code, 'unavailable');
});

test('disposing a server drains it within its time', async t => {
	const peer = await serve(t, {StartVM: async () => never}, {disposeMs: 20});
	const raw = await peer.raw();
	const closed = once(raw.socket, 'close');
	raw.request({method: 'StartVM'}, {streamId: 1});
	raw.request({method: 'Other'}, {streamId: 3});
	await raw.frames(1);
	await peer.server[Symbol.asyncDispose]();
	await closed;
	t.is(raw.received.length, 1);
});

test('a peer that never reads cannot hold up a drain beyond its time', async t => {
	const peer = await serve(t, {Version: async () => ({version: 'x'.repeat(3_000_000)})}, {disposeMs: 20});
	const raw = await peer.raw();
	raw.socket.pause();
	raw.request({});
	const [socket] = peer.accepted;
	while ((socket?.writableLength ?? 0) === 0) {
		await new Promise(resolve => setImmediate(resolve));
	}

	await peer.server[Symbol.asyncDispose]();
	t.true(socket?.destroyed);
});

test('closing a server twice, and draining it after, is closing it once', async t => {
	const begun = Promise.withResolvers<AbortSignal>();
	const peer = await serve(t, {
		async StartVM(_request: object, {signal}) {
			begun.resolve(signal);
			return never;
		},
	});
	const client = await peer.client();
	const call = t.throwsAsync(client.call(method('StartVM'), {}, {}, forever));
	const signal = await begun.promise;
	await Promise.all([peer.server.close(), peer.server.close()]);
	await peer.server.drain(forever);
	await peer.server[Symbol.asyncDispose]();
	t.true(signal.aborted);
	await call;
});

test('after close nothing of ours listens on the accepted sockets', async t => {
	const peer = await serve(t, {Version: async () => ({})});
	const client = await peer.client();
	await client.call(method('Version'), {}, {}, forever);
	const [socket] = peer.accepted;
	await peer.server.close();
	for (const event of ['data', 'drain', 'error', 'close'] as const) {
		t.is(socket?.listenerCount(event), 0, event);
	}
});

test('a draining client waits for its call, makes no new one, then closes', async t => {
	const gate = Promise.withResolvers<object>();
	const peer = await serve(t, {Version: async () => gate.promise});
	const client = await peer.client();
	const call = client.call(method('Version'), {}, {}, forever);
	const drained = client.drain(forever);
	const error = await t.throwsAsync(client.call(method('Version'), {}, {}, forever), {
		instanceOf: AdaptorError,
		message: /drained/,
	});
	t.is(error.code, 'unavailable');
	gate.resolve({version: 'last'});
	t.like(await call, {version: 'last'});
	await drained;
	await client.drain(forever);
	await client[Symbol.asyncDispose]();
});

test('a closing client fails its calls at once; closing again is nothing', async t => {
	const peer = await serve(t, {Version: async () => never});
	const client = await peer.client();
	const call = t.throwsAsync(client.call(method('Version'), {}, {}, forever), {
		instanceOf: AdaptorError,
		message: /client was closed/,
	});
	await client.close();
	t.is((await call).code, 'unavailable');
	await client.close();
	await client[Symbol.asyncDispose]();
});

test('disposing a client ends calls that take longer than its time', async t => {
	const peer = await serve(t, {Version: async () => never});
	const client = await peer.client({disposeMs: 20});
	const call = t.throwsAsync(client.call(method('Version'), {}, {}, forever), {instanceOf: AdaptorError});
	await client[Symbol.asyncDispose]();
	t.is((await call).code, 'unavailable');
});

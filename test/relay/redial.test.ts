/** What a shim notices when its VM's connection is lost: as little as can be, and the truth about the rest. */
import {once} from 'node:events';
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import type {Frame} from '../../src/ttrpc/frame.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {startForwarder} from '../support/forwarder.ts';
import {data, FrameReader, request, response, statusOf} from './frames.ts';
import {connectShim, readAll, running, until, type Running} from './harness.ts';

const quick = {redialPauseMs: [1, 4] as const, again: {retryMs: 10}};

/** A shim, and its VM's end of the connection, read as frames. */
async function talking(
	run: Running,
): Promise<{shim: Awaited<ReturnType<typeof connectShim>>; fromVm: FrameReader; vm: TLSSocket; fromShim: FrameReader}> {
	const {shim, vm} = await run.converse();
	return {shim, fromVm: new FrameReader(shim), vm, fromShim: new FrameReader(vm)};
}

const ids = (frames: readonly Frame[]): number[] => frames.map(({streamId}) => streamId);

for (const how of ['resets', 'ends'] as const) {
	test(`when the VM ${how} the connection, replayable calls are sent again and the others fail with the reason`, async t => {
		await using run = await running({}, quick);
		const {shim, fromVm, vm, fromShim} = await talking(run);
		const frames = [
			request(1, 'WaitProcess'),
			request(3, 'CreateContainer'),
			request(5, 'Check', {timeoutMs: 30_000}),
			request(7, 'GetOOMEvent'),
			request(9, 'ReadStdout'),
		];
		for (const bytes of frames) {
			shim.write(bytes);
		}

		await fromShim.take(5);
		if (how === 'resets') {
			run.forwarder.reset();
		} else {
			vm.end();
		}

		const failed = await fromVm.take(2);
		t.deepEqual(ids(failed), [3, 9]);
		for (const frame of failed) {
			const {code, message} = statusOf(frame);
			t.is(code, statusCode.unavailable);
			t.regex(
				message,
				/connection to the pod VM was lost while this call was under way \(.+\); it is unknown whether the call was executed \(instanceName "podvm-a-12345678", address "127\./,
			);
		}

		const again = await run.forwarder.accept();
		const reissued = await new FrameReader(again).take(3);
		t.deepEqual(
			reissued.map(({bytes}) => bytes),
			[frames[0], frames[2], frames[3]],
		);
		const answers = [response(7, Buffer.from('oom')), response(1, Buffer.from('0')), response(5)];
		again.write(Buffer.concat(answers));
		t.deepEqual(
			(await fromVm.take(3)).map(({bytes}) => bytes),
			answers,
		);
		t.deepEqual(fromVm.waiting, []);
		await until(() =>
			run.harness.lines.some(({msg, level}) => msg === 'connection to the VM restored' && level === 'info'),
		);
		t.true(
			run.harness.lines.some(
				({msg, level, count}) =>
					msg === 'connection to the VM lost; reconnecting' && level === 'warn' && count === 2,
			),
		);
	});
}

/**
 * Where in a conversation the VM's connection can be lost: bytes of the request that the shim has sent, and of the
 * response that the VM has.
 */
const asked = request(1, 'CopyFile', {payload: Buffer.alloc(100_000, 1)});
const waits = request(1, 'WaitProcess', {payload: Buffer.alloc(100, 1)});
const answer = response(1, Buffer.alloc(100_000, 2));
const cuts: ReadonlyArray<readonly [where: string, sent: number, answered: number]> = [
	['before the request', 0, 0],
	['in the header of the request', 5, 0],
	['between header and message of the request', 10, 0],
	['in the message of the request', 60, 0],
	['before the last byte of the request', -1, 0],
	['between request and response', Infinity, 0],
	['in the header of the response', Infinity, 9],
	['between header and message of the response', Infinity, 10],
	['in the message of the response', Infinity, 70_000],
	['before the last byte of the response', Infinity, answer.length - 1],
	['after the response', Infinity, Infinity],
];
for (const [where, sent, answered] of cuts) {
	for (const [what, bytes] of [
		['a call', asked],
		['a call that only waits', waits],
	] as const) {
		test(`${what} whose connection to the VM is lost ${where} gets exactly one complete answer`, async t => {
			await using run = await running({}, quick);
			const {shim, fromVm, vm, fromShim} = await talking(run);
			const end = Math.min(sent < 0 ? bytes.length + sent : sent, bytes.length);
			const isSent = end === bytes.length;
			shim.write(bytes.subarray(0, end));
			if (isSent) {
				await fromShim.next();
			} else {
				await turn();
			}

			const part = answer.subarray(0, Math.min(answered, answer.length));
			if (part.length > 0) {
				await new Promise(resolve => {
					vm.write(part, resolve);
				});
			}

			if (answered === Infinity) {
				t.deepEqual((await fromVm.next()).bytes, answer);
			}

			vm.end();
			await until(() => run.harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
			shim.write(bytes.subarray(end));
			const again = await run.forwarder.accept();
			const fromShimAgain = new FrameReader(again);
			if (answered !== Infinity) {
				if (isSent && bytes === asked) {
					t.is(statusOf(await fromVm.next()).code, statusCode.unavailable);
				} else {
					t.true((await fromShimAgain.next()).bytes.equals(bytes));
					again.write(answer);
					t.true((await fromVm.next()).bytes.equals(answer));
				}
			}

			// The conversation goes on, with nothing between.
			shim.write(request(3, 'Check'));
			t.is((await fromShimAgain.next()).streamId, 3);
			again.write(response(1, Buffer.from('late')));
			again.write(response(3));
			t.is((await fromVm.next()).streamId, 3);
			t.deepEqual([fromVm.waiting, fromVm.heldBytes, fromShimAgain.waiting], [[], 0, []]);
		});
	}
}

test('held frames are sent as soon as the VM is verified, without waiting for further frames', async t => {
	await using run = await running({}, {...quick, objectionMs: 60_000});
	for (let streamId = 1; streamId < 10; streamId += 2) {
		const shim = await connectShim(run.socketPath);
		shim.write(request(streamId, 'Check'));
		t.is((await new FrameReader(await run.forwarder.accept()).next()).streamId, streamId);
	}
});

test("a shim that leaves the relay's own answers unread is not read from either, until it reads again", async t => {
	await using run = await running({}, quick);
	run.relay.fail(new AdaptorError({code: 'aborted', what: 'The VM ended: crashed'}));
	const shim = await connectShim(run.socketPath);
	const count = 40_000;
	shim.write(Buffer.concat(Array.from({length: count}, (_, n) => request(2 * n + 1, 'Check'))));
	for (
		let still = 0, before = -1;
		still < 300;
		still = shim.writableLength === before && shim.bytesWritten > 0 ? still + 1 : 0
	) {
		before = shim.writableLength;
		await turn();
	}

	t.true(shim.writableLength > 0);
	const answers = await new FrameReader(shim).take(count);
	t.is(new Set(ids(answers)).size, count);
});

test('requests that come while the VM is away are kept and sent in their order, once it is back', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	const frames = [
		request(1, 'CreateContainer', {payload: Buffer.alloc(70_000)}),
		request(3, 'StartContainer'),
		request(5, 'Check', {timeoutMs: 30_000}),
	];
	shim.write(Buffer.concat(frames));
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
	await using back = await startForwarder({tls: run.tls, address: run.forwarder.address, port: run.forwarder.port});
	const vm = await back.accept();
	t.deepEqual(
		(await new FrameReader(vm).take(3)).map(({bytes}) => bytes),
		frames,
	);
	vm.write(Buffer.concat([response(5), response(3), response(1)]));
	t.deepEqual(ids(await fromVm.take(3)), [5, 3, 1]);
});

test('another host that took over the address of the VM receives no data', async t => {
	await using run = await running({}, {...quick, strangerMs: 10});
	const {shim, fromVm} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	const other = await run.harness.relays.issue('podvm-other', AbortSignal.timeout(100_000));
	await using stranger = await startForwarder({
		tls: other,
		address: run.forwarder.address,
		port: run.forwarder.port,
		allowHalfOpen: false,
	});
	// No attempt begins before the last has failed.
	await until(() => stranger.dialled > 1);
	shim.write(request(1, 'Check', {timeoutMs: 400}));
	t.is(statusOf(await fromVm.next()).code, statusCode.unavailable);
	t.is(stranger.proven, 0);
});

test('a health check is answered once, with the reason, if the VM does not come back before its deadline', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm, fromShim} = await talking(run);
	shim.write(request(1, 'Check', {timeoutMs: 800}));
	shim.write(request(3, 'WaitProcess'));
	await fromShim.take(2);
	await run.forwarder[Symbol.asyncDispose]();
	shim.write(request(5, 'Check', {timeoutMs: 900}));
	const [first, second] = await fromVm.take(2);
	t.deepEqual([first?.streamId, second?.streamId], [1, 5]);
	t.regex(
		statusOf(first as Frame).message,
		/could not be reached before the deadline of this call: the connection was lost \(.+\)/,
	);
	await using back = await startForwarder({tls: run.tls, address: run.forwarder.address, port: run.forwarder.port});
	const vm = await back.accept();
	t.deepEqual(ids(await new FrameReader(vm).take(1)), [3]);
	vm.write(Buffer.concat([response(1), response(5), response(3)]));
	t.is((await fromVm.next()).streamId, 3);
	t.deepEqual(fromVm.waiting, []);
});

test('a health check that was sent again without an answer is answered by the relay in time', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm, vm, fromShim} = await talking(run);
	// Time enough to make it again, on a slow machine too.
	shim.write(request(1, 'Check', {timeoutMs: 12_000}));
	await fromShim.next();
	vm.end();
	const again = new FrameReader(await run.forwarder.accept());
	t.is((await again.next()).streamId, 1);
	t.regex(
		statusOf(await fromVm.next()).message,
		/had to wait for the connection to the pod VM, and the VM did not answer it before its deadline/,
	);
});

test('requests over the limit of held data are refused at once; earlier requests are kept', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
	const large = Buffer.alloc(3 * 1024 * 1024);
	for (const streamId of [1, 3, 5, 7]) {
		shim.write(request(streamId, 'CopyFile', {payload: large}));
	}

	const refused = await fromVm.next();
	t.is(refused.streamId, 5);
	t.deepEqual(statusOf(refused).code, statusCode.unavailable);
	t.is((await fromVm.next()).streamId, 7);
	const count = 1500;
	const small = Array.from({length: count}, (_, n) => request(11 + 2 * n, 'Check'));
	shim.write(Buffer.concat(small));
	t.is((await fromVm.take(count - 1022)).length, 478);
	await using back = await startForwarder({tls: run.tls, address: run.forwarder.address, port: run.forwarder.port});
	const kept = await new FrameReader(await back.accept()).take(1024);
	t.deepEqual(ids(kept).slice(0, 3), [1, 3, 11]);
	t.deepEqual(fromVm.waiting, []);
});

test('a request in several frames that arrives while the VM is unreachable is sent completely', async t => {
	await using run = await running({}, quick);
	const {shim} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
	const frames = [
		request(1, 'Stream'),
		data(1, Buffer.alloc(1000)),
		request(3, 'Check'),
		data(1, Buffer.from('end')),
	];
	shim.write(Buffer.concat(frames));
	await using back = await startForwarder({tls: run.tls, address: run.forwarder.address, port: run.forwarder.port});
	const sent = await new FrameReader(await back.accept()).take(4);
	t.deepEqual(
		sent.map(({bytes}) => bytes),
		[frames[0], frames[1], frames[3], frames[2]],
	);
});

test('a VM that accepts and hangs up is not dialled in a tight loop', async t => {
	await using run = await running({onConnection: socket => socket.end()}, {redialPauseMs: [200, 400]});
	const shim = await connectShim(run.socketPath);
	shim.write(request(1, 'Check', {timeoutMs: 1000}));
	t.is(statusOf(await new FrameReader(shim).next()).code, statusCode.unavailable);
	t.true(run.forwarder.dialled <= 7, `${run.forwarder.dialled} connections`);
});

test('a shim that ends its direction while the VM is unreachable is answered, and its connection is closed', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	shim.end(Buffer.concat([request(1, 'CreateContainer'), request(3, 'WaitProcess')]));
	const answers = await fromVm.take(2);
	t.true(answers.every(frame => statusOf(frame).code === statusCode.unavailable));
	await once(shim, 'close');
});

async function gone(t: ExecutionContext, frames: readonly Frame[]): Promise<void> {
	for (const frame of frames) {
		const {code, message} = statusOf(frame);
		t.is(code, statusCode.unavailable);
		t.regex(message, /The pod VM is gone: The VM ended: crashed/);
	}
}

test('after fail(), every running and future call fails at once, on every connection', async t => {
	await using run = await running({}, quick);
	const [one, two] = [await talking(run), await talking(run)];
	one.shim.write(Buffer.concat([request(1, 'WaitProcess'), request(3, 'CreateContainer')]));
	await one.fromShim.take(2);
	two.shim.write(request(1, 'Check', {timeoutMs: 30_000}));
	await two.fromShim.take(1);
	const ended = Promise.all([once(one.vm, 'end'), once(two.vm, 'end')]);
	run.relay.fail(new AdaptorError({code: 'aborted', what: 'The VM ended: crashed'}));
	run.relay.fail(new Error('a later reason'));
	await gone(t, [...(await one.fromVm.take(2)), await two.fromVm.next()]);
	one.shim.write(request(5, 'Check'));
	await gone(t, [await one.fromVm.next()]);
	const three = await connectShim(run.socketPath);
	three.write(request(1, 'Check'));
	await gone(t, [await new FrameReader(three).next()]);
	await ended;
	one.shim.end();
	t.is((await readAll(one.shim)).length, 0);
});

test('after fail(), the VM is not dialled any more', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	shim.write(request(1, 'WaitProcess'));
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
	run.relay.fail(new AdaptorError({code: 'aborted', what: 'The VM ended: crashed'}));
	await gone(t, [await fromVm.next()]);
	await using back = await startForwarder({tls: run.tls, address: run.forwarder.address, port: run.forwarder.port});
	shim.write(request(3, 'Check'));
	await gone(t, [await fromVm.next()]);
	t.is(back.dialled, 0);
});

test("disposing while the VM is away ends the shim's connection at once", async t => {
	await using run = await running({}, quick);
	const {shim, fromVm} = await talking(run);
	await run.forwarder[Symbol.asyncDispose]();
	shim.write(request(1, 'WaitProcess'));
	await until(() => run.harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
	const closed = once(shim, 'end');
	await run.relay[Symbol.asyncDispose]();
	await closed;
	t.deepEqual(fromVm.waiting, []);
	t.false(await run.harness.isServed(run.socketPath));
});

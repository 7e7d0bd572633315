/** What a VM that breaks the protocol can do to its own shim, and to nobody else. */
import {once} from 'node:events';
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import test from 'ava';
import {encodeFrame, frameType, maxMessageLength} from '../../src/ttrpc/frame.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {data, FrameReader, request, response, statusOf} from './frames.ts';
import {connectShim, running, until, type LogLine, type Running} from './harness.ts';

const quick = {redialPauseMs: [1, 4] as const, again: {retryMs: 10}};
const empty = Buffer.alloc(0);
const times = (count: number, bytes: Buffer): Buffer => Buffer.concat(Array.from({length: count}, () => bytes));
const said = ({harness}: Running, message: string): readonly LogLine[] =>
	harness.lines.filter(({msg}) => msg === message);
const lost = 'connection to the VM lost; reconnecting';

/** The header of a message over the limit, and a little of it. */
function oversized(streamId: number, type: number): Buffer {
	const header = encodeFrame({streamId, type, flags: 0}, empty);
	header.writeUInt32BE(maxMessageLength + 1);
	return Buffer.concat([header, Buffer.alloc(maxMessageLength + 1)]);
}

const breaches: ReadonlyArray<readonly [what: string, frame: Buffer]> = [
	['a response to no call', response(99)],
	['data of no call', data(99, empty)],
	['a request from the server side', request(1, 'Check')],
	['a frame of a reserved type', encodeFrame({streamId: 1, type: 200, flags: 0}, empty)],
	['a message over the limit', oversized(99, frameType.response)],
];
for (const [what, frame] of breaches) {
	test(`a VM that sends ${what} is forgiven ten times, then its connection ends and another is made`, async t => {
		await using run = await running({}, quick);
		const {shim, vm} = await run.converse();
		const [fromVm, fromShim] = [new FrameReader(shim), new FrameReader(vm)];
		shim.write(
			Buffer.concat([request(1, 'WaitProcess'), request(3, 'CreateContainer'), request(5, 'ExecProcess')]),
		);
		await fromShim.take(3);
		vm.write(Buffer.concat([times(10, frame), response(3)]));
		t.deepEqual((await fromVm.next()).bytes, response(3));
		t.deepEqual(
			said(run, 'the VM violated the protocol; frame dropped').map(({level, reason}) => [level, reason]),
			[['warn', what]],
		);
		t.deepEqual(said(run, lost), []);
		vm.write(frame);
		const failed = await fromVm.next();
		t.deepEqual([failed.streamId, statusOf(failed).code], [5, statusCode.unavailable]);
		t.regex(statusOf(failed).message, new RegExp(`broke the ttrpc protocol: it sent ${what} 11 times`));
		const again = new FrameReader(await run.forwarder.accept());
		t.is((await again.next()).streamId, 1);
		t.is(said(run, lost).length, 1);
	});
}

test('a VM that floods each of its connections is dialled with growing pauses, and the log is not flooded', async t => {
	const flood = times(3000, response(99, empty));
	const isFlooding = (socket: TLSSocket): void => {
		socket
			.on('error', () => undefined)
			.on('drain', () => socket.write(flood))
			.write(flood);
	};
	await using run = await running({onConnection: isFlooding}, {redialPauseMs: [200, 400]});
	const shim = await connectShim(run.socketPath);
	shim.write(request(1, 'Check', {timeoutMs: 1500}));
	t.is(statusOf(await new FrameReader(shim).next()).code, statusCode.unavailable);
	t.true(run.forwarder.dialled <= 10, `${run.forwarder.dialled} connections`);
	t.true(run.forwarder.dialled > 1);
	const lines = run.harness.lines.filter(({level}) => level === 'warn');
	t.true(lines.length <= 6, lines.map(({msg}) => msg).join('\n'));
});

test('a VM that floods its first connection is not dialled again before the pause is over', async t => {
	await using run = await running({}, {redialPauseMs: [60_000, 60_000]});
	const {shim, vm} = await run.converse();
	shim.write(request(1, 'WaitProcess'));
	await new FrameReader(vm).next();
	vm.write(times(11, response(99, empty)));
	await until(() => said(run, lost).length === 1);
	for (let turns = 0; turns < 200; turns++) {
		await turn();
	}

	t.is(run.forwarder.dialled, 1);
});

test('a thousand answers at once are passed on over several turns of the event loop', async t => {
	await using run = await running();
	const {shim, vm} = await run.converse();
	const streams = Array.from({length: 1000}, (_, n) => 2 * n + 1);
	const fromVm = new FrameReader(shim);
	shim.write(Buffer.concat(streams.map(streamId => request(streamId, 'ReadStdout'))));
	await new FrameReader(vm).take(1000);
	let most = 0;
	vm.write(Buffer.concat(streams.map(streamId => response(streamId, empty))));
	for (let before = 0; before < 1000;) {
		await turn();
		const passed = said(run, 'agent call').length;
		most = Math.max(most, passed - before);
		before = passed;
	}

	await fromVm.take(1000);
	t.true(most <= 512, `${most} in one turn`);
});

test('a shim that breaks the protocol is forgiven ten times, then its connection ends, and no other', async t => {
	await using run = await running({}, quick);
	const [one, two] = [await run.converse(), await run.converse()];
	const fromShim = new FrameReader(one.vm);
	const reserved = encodeFrame({streamId: 1, type: 0, flags: 0}, empty);
	one.shim.write(Buffer.concat([times(5, reserved), times(5, response(1)), request(3, 'ReadStdout')]));
	t.is((await fromShim.next()).streamId, 3);
	const closed = once(one.shim, 'end');
	one.shim
		.on('error', () => undefined)
		.resume()
		.write(reserved);
	await Promise.all([closed, once(one.vm, 'end')]);
	const [line] = said(run, 'the shim violated the protocol too often; connection closed');
	t.regex(
		JSON.stringify(line),
		/it sent a frame of a reserved type 6 times, a response from the client side 5 times/,
	);
	t.deepEqual(
		said(run, 'shim disconnected').map(({level}) => level),
		['debug'],
	);
	two.shim.write(request(1, 'Check'));
	t.is((await new FrameReader(two.vm).next()).streamId, 1);
});

for (const how of ['ends', 'is killed'] as const) {
	test(`a shim that ${how} while its VM runs causes one log line, with the number of open calls`, async t => {
		await using run = await running({}, quick);
		const {shim, vm} = await run.converse();
		const asked = request(1, 'WaitProcess');
		shim.write(asked);
		await new FrameReader(vm).next();
		if (how === 'ends') {
			shim.end();
		} else {
			shim.destroy();
		}

		await until(() => said(run, 'shim disconnected').length > 0);
		const [line, ...more] = said(run, 'shim disconnected');
		t.like(line, {
			level: 'info',
			sandboxId: 'a',
			instanceName: 'podvm-a-12345678',
			connection: 1,
			count: 1,
			bytes: asked.length,
		});
		t.is(typeof line?.durationMs, 'number');
		vm.end();
		await run.forwarder.idle();
		t.deepEqual(more, []);
		t.is(said(run, 'shim disconnected').length, 1);
	});
}

test('a connection that the relay closed, or without data, is not reported as a lost shim', async t => {
	await using run = await running({}, quick);
	const {shim: probe} = await run.converse();
	probe.destroy();
	await until(() => said(run, 'shim disconnected').length === 1);
	const {shim, vm} = await run.converse();
	shim.write(request(1, 'WaitProcess'));
	await new FrameReader(vm).next();
	await run.relay[Symbol.asyncDispose]();
	await until(() => said(run, 'shim disconnected').length === 2);
	t.deepEqual(
		said(run, 'shim disconnected').map(({level}) => level),
		['debug', 'debug'],
	);
});

/**
 * A connection to the VM on which nothing comes any more: replaced when the VM answers on another one, kept when the VM
 * is just slow.
 */
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import test from 'ava';
import {noObserver} from '../../src/core/observer.ts';
import {LivenessProbe} from '../../src/relay/liveness-probe.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {startForwarder} from '../support/forwarder.ts';
import {startHole} from '../support/hole.ts';
import {FrameReader, request, response, statusOf} from './frames.ts';
import {connectShim, patient, realHarness, running, until, type Running} from './harness.ts';
import {from} from '../contract/agent-relays.ts';

const liveness = {doubtMs: 50, answerMs: 60_000, graceMs: 20, lateMs: 20};
const quick = {redialPauseMs: [1, 4] as const, again: {retryMs: 10}, liveness};
const check = request(5, 'Check', {timeoutMs: 60_000});

/** A shim whose VM has read three calls, a health check among them, and answered none. */
async function unanswered(
	run: Running,
): Promise<{shim: Awaited<ReturnType<typeof connectShim>>; fromVm: FrameReader; vm: TLSSocket; fromShim: FrameReader}> {
	const {shim, vm} = await run.converse();
	const [fromVm, fromShim] = [new FrameReader(shim), new FrameReader(vm)];
	shim.write(Buffer.concat([request(1, 'WaitProcess'), request(3, 'CreateContainer'), check]));
	await fromShim.take(3);
	return {shim, fromVm, vm, fromShim};
}

/** Resolves when the relay has closed the connection: with an end, or a reset when something was unread. */
async function left(vm: TLSSocket): Promise<void> {
	await new Promise<void>(resolve => {
		vm.resume()
			.once('end', resolve)
			.once('close', () => resolve());
	});
}

const losses = ({harness}: Running): Running['harness']['lines'] =>
	harness.lines.filter(({msg}) => msg.startsWith('connection to the VM lost'));

test('a silent connection is replaced if a second one is answered: replayable calls survive', async t => {
	await using run = await running({}, quick);
	const {shim, fromVm, vm} = await unanswered(run);
	const oldEnded = left(vm);
	const second = await run.forwarder.accept();
	const secondEnded = left(second);
	t.true((await new FrameReader(second).next()).bytes.equals(check));
	second.write(response(5));
	const third = await run.forwarder.accept();
	const fromShim = new FrameReader(third);
	t.deepEqual(
		(await fromShim.take(2)).map(({bytes}) => bytes),
		[request(1, 'WaitProcess'), check],
	);
	const failed = await fromVm.next();
	t.is(failed.streamId, 3);
	t.is(statusOf(failed).code, statusCode.unavailable);
	t.regex(
		statusOf(failed).message,
		/lost while this call was under way \(nothing arrived on it for 20 ms after it was replaced\)/,
	);
	third.write(Buffer.concat([response(5), response(1)]));
	t.deepEqual(
		(await fromVm.take(2)).map(({streamId}) => streamId),
		[5, 1],
	);
	shim.write(request(7, 'StartContainer'));
	t.is((await fromShim.next()).streamId, 7);
	await Promise.all([oldEnded, secondEnded]);
	t.deepEqual(
		losses(run).map(({level, count}) => [level, count]),
		[['warn', 0]],
	);
	t.deepEqual(fromVm.waiting, []);
});

for (const answeredOnSecond of [false, true]) {
	test(`a slow VM that answers ${answeredOnSecond ? 'on both connections at the same time' : 'late'} loses no call`, async t => {
		await using run = await running({}, {...quick, liveness: {...liveness, graceMs: 600_000}});
		const {shim, fromVm, vm, fromShim} = await unanswered(run);
		const second = await run.forwarder.accept();
		const ended = left(second);
		await new FrameReader(second).next();
		if (answeredOnSecond) {
			await new Promise(resolve => {
				second.write(response(5), resolve);
			});
			await ended;
		}

		vm.write(response(5, Buffer.from('at last')));
		t.true((await fromVm.next()).bytes.equals(response(5, Buffer.from('at last'))));
		await ended;
		shim.write(request(7, 'StartContainer'));
		t.is((await fromShim.next()).streamId, 7);
		vm.write(Buffer.concat([response(7), response(3), response(1)]));
		t.deepEqual(
			(await fromVm.take(3)).map(({streamId}) => streamId),
			[7, 3, 1],
		);
		t.deepEqual(losses(run), []);
	});
}

test('a VM that is silent on all connections is not given up, and its calls continue when it is back', async t => {
	await using harness = await realHarness({timings: {...patient, ...quick}});
	const {relays, directory, address, port} = harness;
	const signal = AbortSignal.timeout(100_000);
	const tls = await relays.issue('podvm-a-12345678', signal);
	await using forwarder = await startForwarder({tls, address: address(2), port});
	await using hole = await startHole({address: address(1), port, to: address(2)});
	const socketPath = `${directory}/a/agent.ttrpc`;
	await using relay = await relays.open(
		{sandboxId: 'a', instanceName: 'podvm-a-12345678', socketPath},
		from(address(1)),
		signal,
	);
	const shim = await connectShim(socketPath);
	const vm = await forwarder.accept();
	const [fromVm, fromShim] = [new FrameReader(shim), new FrameReader(vm)];
	shim.write(request(1, 'CreateContainer'));
	await fromShim.next();
	hole.open();
	shim.write(check);
	await until(() => hole.dialled > 1);
	t.deepEqual(fromShim.waiting, []);
	hole.close();
	t.is((await fromShim.next()).streamId, 5);
	vm.write(Buffer.concat([response(5), response(1)]));
	t.deepEqual(
		(await fromVm.take(2)).map(({bytes}) => bytes),
		[response(5), response(1)],
	);
	t.false(harness.lines.some(({msg}) => msg.startsWith('connection to the VM lost')));
	await relay[Symbol.asyncDispose]();
});

test('a check on a silent connection is answered before its deadline, and its late answer is dropped', async t => {
	await using run = await running({}, quick);
	const {shim, vm} = await run.converse();
	const [fromVm, fromShim] = [new FrameReader(shim), new FrameReader(vm)];
	shim.write(
		Buffer.concat([request(1, 'CreateContainer', {timeoutMs: 1000}), request(3, 'Check', {timeoutMs: 1500})]),
	);
	await run.forwarder.accept();
	// One that comes later is no better off.
	shim.write(request(5, 'Check', {timeoutMs: 1500}));
	for (const streamId of [3, 5]) {
		const answer = await fromVm.next();
		t.is(answer.streamId, streamId);
		t.is(statusOf(answer).code, statusCode.unavailable);
		t.regex(statusOf(answer).message, /did not answer before the deadline of this call, neither on its connection/);
	}

	t.deepEqual(
		(await fromShim.take(3)).map(({streamId}) => streamId),
		[1, 3, 5],
	);
	vm.write(Buffer.concat([response(3), response(5), response(1)]));
	t.is((await fromVm.next()).streamId, 1);
	t.deepEqual([fromVm.waiting, losses(run)], [[], []]);
});

test('a second connection that is lost before its answer is followed by another', async t => {
	await using run = await running({}, quick);
	const {fromVm} = await unanswered(run);
	for (let lost = 0; lost < 3; lost++) {
		const second = await run.forwarder.accept();
		await new FrameReader(second).next();
		second.end();
	}

	const another = await run.forwarder.accept();
	await new FrameReader(another).next();
	another.write(response(5));
	t.is((await fromVm.next()).streamId, 3);
	t.is(losses(run).length, 1);
});

test('a second connection that is not answered is followed by another', async t => {
	await using run = await running({}, {...quick, liveness: {...liveness, answerMs: 50}});
	await unanswered(run);
	await left(await run.forwarder.accept());
	await left(await run.forwarder.accept());
	t.deepEqual(losses(run), []);
});

test('if the shim leaves during the probe, the second connection is closed too', async t => {
	await using run = await running({}, quick);
	const {shim, vm} = await unanswered(run);
	const second = await run.forwarder.accept();
	const ended = Promise.all([left(vm), left(second)]);
	shim.destroy();
	await ended;
	t.is(run.forwarder.dialled, 2);
});

test('long-running calls do not start the probe, nor does a health check behind a large backlog', async t => {
	await using run = await running({}, {...quick, liveness: {...liveness, doubtMs: 1}});
	const {shim, vm} = await run.converse();
	const fromShim = new FrameReader(vm);
	const some = async (): Promise<void> => {
		for (const until = performance.now() + 50; performance.now() < until;) {
			await turn();
		}
	};

	shim.write(Buffer.concat([request(1, 'WaitProcess'), request(3, 'CreateContainer')]));
	await fromShim.take(2);
	await some();
	shim.write(Buffer.concat([request(5, 'CopyFile', {payload: Buffer.alloc(300_000)}), request(7, 'Check')]));
	await fromShim.take(2);
	await some();
	t.is(run.forwarder.dialled, 1);
	vm.write(response(5));
	await run.forwarder.accept();
	t.pass();
});

test('silence that this process may have caused is checked again later, without dialling', async t => {
	const excuses = Promise.withResolvers<undefined>();
	let looks = 0;
	using watch = new LivenessProbe({
		connectVm: async () => Promise.reject(new Error('dialled')),
		observer: noObserver,
		now: () => performance.now(),
		timings: {...liveness, doubtMs: 1},
		pauseMs: [1, 1],
		healthCheck: () => check,
		isExcused() {
			if (++looks === 5) {
				excuses.resolve(undefined);
			}

			return true;
		},
		doubted: () => t.fail(),
		silent: () => t.fail(),
	});
	watch.sent();
	await excuses.promise;
	t.false(watch.isDoubted);
});

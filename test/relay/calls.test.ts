import {readFile} from 'node:fs/promises';
import test from 'ava';
import fc from 'fast-check';
import {Calls, defaultCallLimits, type Call, type CallEvent, type ConnectionCalls} from '../../src/relay/calls.ts';
import {noObserver} from '../../src/core/observer.ts';
import {encodeFrame, Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {data, failure, frameOf, request, response} from './frames.ts';

const streams = (calls: readonly {readonly streamId: number}[]): number[] => calls.map(({streamId}) => streamId);

function agentCalls(events: readonly CallEvent[]): ReadonlyArray<Extract<CallEvent, {readonly kind: 'agent-call'}>> {
	return events.filter(event => event.kind === 'agent-call');
}

test('answers are matched to their calls in whatever order, with method, time and status', async t => {
	const lines: CallEvent[] = [];
	const calls = new Calls({notify: event => lines.push(event)}, defaultCallLimits);
	calls.request(frameOf(request(1, 'WaitProcess')), true, 0);
	calls.request(frameOf(request(3, 'CopyFile', {payload: Buffer.alloc(100_000)})), true, 0);
	t.is(calls.response(frameOf(failure(3, 5, 'x'.repeat(1000))), 12.34), 'open');
	t.is(calls.response(frameOf(response(9)), 12.34), 'unknown');
	t.is(calls.size, 1);
	t.is(calls.response(frameOf(response(1)), 20), 'open');
	t.is(calls.size, 0);
	t.deepEqual(
		agentCalls(lines).map(({method, durationMs, code}) => [method, durationMs, code]),
		[
			['grpc.AgentService/CopyFile', 12.3, 'NOT_FOUND'],
			['grpc.AgentService/WaitProcess', 20, 'OK'],
		],
	);
	t.deepEqual(
		agentCalls(lines).map(({requestBytes, responseBytes}) => [requestBytes, responseBytes]),
		[
			[request(3, 'CopyFile', {payload: Buffer.alloc(100_000)}).length, failure(3, 5, 'x'.repeat(1000)).length],
			[request(1, 'WaitProcess').length, response(1).length],
		],
	);
});

test('the methods of the recorded conversation are seen, and all its calls are answered', async t => {
	const lines: CallEvent[] = [];
	const calls = new Calls({notify: event => lines.push(event)}, defaultCallLimits);
	const recorded = async (side: string): Promise<Buffer> =>
		readFile(new URL(`../fixtures/kata-shim/agent.${side}.bin`, import.meta.url));
	const requests = [...new FrameDecoder().push(await recorded('client'))].filter(frame => frame instanceof Frame);
	const responses = [...new FrameDecoder().push(await recorded('server'))].filter(frame => frame instanceof Frame);
	t.is(requests.length, 33);
	t.true(requests.every(frame => calls.request(frame, true, 0) === 'taken'));
	t.true(responses.every(frame => calls.response(frame, 0) === 'open'));
	t.is(agentCalls(lines).length, responses.length);
	t.true(agentCalls(lines).every(({method}) => /^grpc\.(AgentService|Health)\/\w+$/.test(method)));
});

test('calls that were sent before count as replayed, calls that waited for their first connection do not', t => {
	const events: CallEvent[] = [];
	const calls = new Calls({notify: event => events.push(event)}, defaultCallLimits);
	calls.request(frameOf(request(1, 'WaitProcess')), false, 0);
	t.is([...calls.join()].length, 1);
	t.deepEqual(events, []);
	calls.request(frameOf(request(3, 'GetOOMEvent')), true, 0);
	calls.lost();
	calls.request(frameOf(request(5, 'CreateContainer')), false, 0);
	t.is([...calls.join()].length, 3);
	t.deepEqual(events, [{kind: 'calls-replayed', count: 2}]);
	calls.retire();
	t.is([...calls.join()].length, 2);
	t.deepEqual(events.slice(1), [{kind: 'calls-replayed', count: 2}]);
});

test('when the connection is lost, replayable calls are sent again byte for byte, and others fail', t => {
	const calls = new Calls(noObserver, defaultCallLimits);
	const waiting = [
		request(1, 'WaitProcess', {payload: Buffer.from('a')}),
		request(5, 'GetOOMEvent'),
		request(9, 'Check', {timeoutMs: 30_000}),
	];
	for (const bytes of [waiting[0], request(3, 'CreateContainer'), waiting[1], request(7, 'ReadStdout'), waiting[2]]) {
		calls.request(frameOf(bytes ?? Buffer.alloc(0)), true, 0);
	}

	t.deepEqual(streams(calls.lost()), [3, 7]);
	for (const {streamId} of calls.lost()) {
		t.true(calls.answer(streamId, 14, 0));
	}

	for (let connection = 0; connection < 3; connection++) {
		t.deepEqual([...calls.join()], waiting);
		t.deepEqual(streams(calls.lost()), []);
	}
});

test('requests without a connection are sent once, in order; after the next loss they fail', t => {
	const calls = new Calls(noObserver, defaultCallLimits);
	const frames = [request(1, 'ExecProcess'), request(3, 'WaitProcess'), request(5, 'CopyFile')];
	for (const bytes of frames) {
		t.is(calls.request(frameOf(bytes), false, 0), 'taken');
	}

	t.is(calls.heldBytes, Buffer.concat(frames).length);
	t.deepEqual([...calls.join()], frames);
	t.is(calls.heldBytes, frames[1]?.length ?? 0);
	t.deepEqual(streams(calls.lost()), [1, 5]);
});

test('a stream is answered once: later answers are dropped', t => {
	const calls = new Calls(noObserver, defaultCallLimits);
	calls.request(frameOf(request(1, 'Check')), true, 0);
	t.is(calls.request(frameOf(request(1, 'Check')), true, 0), 'busy');
	t.true(calls.answer(1, 14, 0));
	t.false(calls.answer(1, 14, 0));
	t.is(calls.response(frameOf(response(1)), 0), 'late');
	t.deepEqual([...calls.join()], []);
	t.is(calls.heldBytes, 0);
});

test('only delayed calls are answered before their deadline, by 500 ms or a tenth of their timeout', t => {
	const calls = new Calls(noObserver, defaultCallLimits);
	calls.request(frameOf(request(1, 'Check', {timeoutMs: 30_000})), true, 1000);
	calls.request(frameOf(request(3, 'Check', {timeoutMs: 1000})), true, 1000);
	calls.request(frameOf(request(5, 'WaitProcess')), true, 1000);
	t.is(calls.nextDeadline, undefined);
	t.deepEqual(calls.expired(1e9), []);
	calls.lost();
	t.is(calls.nextDeadline, 1900);
	t.deepEqual(streams(calls.expired(1900)), [3]);
	calls.answer(3, 14, 1900);
	t.is(calls.nextDeadline, 30_500);
	calls.request(frameOf(request(7, 'ExecProcess', {timeoutMs: 5000})), false, 2000);
	t.is(calls.nextDeadline, 6500);
});

test('a request in several frames is held completely, and is never replayed', t => {
	const calls = new Calls(noObserver, {maxOpen: 10, maxHeldBytes: 200});
	const frames = [request(1, 'Check'), data(1, Buffer.from('more'))];
	calls.request(frameOf(frames[0] ?? Buffer.alloc(0)), false, 0);
	t.is(calls.data(frameOf(frames[1] ?? Buffer.alloc(0)), false), 'taken');
	t.is(calls.data(frameOf(data(1, Buffer.alloc(200))), false), 'full');
	t.is(calls.data(frameOf(data(3, Buffer.alloc(2))), false), 'unknown');
	t.deepEqual([...calls.join()], frames);
	t.is(calls.data(frameOf(data(1, Buffer.alloc(1))), true), 'taken');
	t.is(calls.heldBytes, 0);
	t.deepEqual(streams(calls.lost()), [1]);
});

test('no frames make it throw, or remember more than it may', t => {
	const limits = {maxOpen: 5, maxHeldBytes: 500};
	const frame = fc.oneof(
		fc
			.tuple(fc.integer({min: 0, max: 5}), fc.integer({min: 0, max: 9}), fc.uint8Array({maxLength: 400}))
			.map(([type, streamId, message]) => encodeFrame({type, streamId, flags: 0}, message)),
		fc
			.tuple(fc.integer({min: 0, max: 9}), fc.constantFrom('Check', 'WaitProcess', 'CopyFile'), fc.nat(300))
			.map(([streamId, method, length]) => request(streamId, method, {payload: Buffer.alloc(length)})),
	);
	const step = fc.record({what: fc.constantFrom('shim', 'vm', 'lose', 'join'), frame});
	fc.assert(
		fc.property(fc.array(step, {maxLength: 60}), steps => {
			const calls = new Calls(noObserver, limits);
			let isJoined = false;
			for (const {what, frame: bytes} of steps) {
				const given = frameOf(bytes);
				if (what === 'shim' && given.type === frameType.request) {
					calls.request(given, isJoined, 0);
				} else if (what === 'shim') {
					calls.data(given, isJoined);
				} else if (what === 'vm') {
					calls.response(given, 0);
				} else if (what === 'lose') {
					isJoined = false;
					for (const {streamId} of calls.lost()) {
						calls.answer(streamId, 14, 0);
					}
				} else {
					isJoined = true;
					t.is(Buffer.concat([...calls.join()]).length <= limits.maxHeldBytes, true);
				}

				t.true(calls.size <= limits.maxOpen);
				t.true(calls.heldBytes >= 0 && calls.heldBytes <= limits.maxHeldBytes);
			}

			for (const {streamId} of calls.all()) {
				calls.answer(streamId, 14, 0);
			}

			t.is(calls.heldBytes, 0);
		}),
		{numRuns: 300},
	);
});

test('however connections are retired and lost, a call is answered once at most, and nothing stays', t => {
	const limits = {maxOpen: 5, maxHeldBytes: 500};
	const step = fc.record({
		what: fc.constantFrom('request', 'answer', 'answer', 'fail', 'retire', 'join', 'lose', 'lose old'),
		streamId: fc.integer({min: 0, max: 6}).map(n => 2 * n + 1),
		method: fc.constantFrom('WaitProcess', 'ReadStdout', 'GetOOMEvent'),
		connection: fc.nat(3),
	});
	fc.assert(
		fc.property(fc.array(step, {maxLength: 80}), steps => {
			const calls = new Calls(noObserver, limits);
			const retired: ConnectionCalls[] = [];
			const open = new Set<number>();
			let isJoined = false;
			const fail = (lost: readonly Call[]): void => {
				for (const {streamId} of lost) {
					t.true(open.delete(streamId));
					t.true(calls.answer(streamId, 14, 0));
				}
			};

			for (const {what, streamId, method, connection} of steps) {
				if (what === 'request') {
					if (calls.request(frameOf(request(streamId, method)), isJoined, 0) === 'taken') {
						open.add(streamId);
					}
				} else if (what === 'answer' || what === 'fail') {
					const on = connection === 0 ? undefined : retired[connection - 1];
					const frame = frameOf(what === 'answer' ? response(streamId) : failure(streamId, 5));
					const standing = isJoined || on !== undefined ? calls.response(frame, 0, on) : 'unknown';
					if (standing === 'open' || standing === 'lost') {
						t.true(open.has(streamId));
					}

					if (standing === 'open') {
						open.delete(streamId);
					} else if (standing === 'lost') {
						fail(calls.all().filter(call => call.streamId === streamId));
					}
				} else if (what === 'retire' && isJoined && retired.length < 3) {
					isJoined = false;
					retired.push(calls.retire());
				} else if (what === 'join' && !isJoined) {
					isJoined = true;
					t.true([...calls.join()].length <= limits.maxOpen);
				} else if (what === 'lose' && isJoined) {
					isJoined = false;
					fail(calls.lost());
				} else if (what === 'lose old') {
					const [on] = retired.splice(connection, 1);
					fail(on === undefined ? [] : calls.lost(on));
				}

				t.deepEqual(new Set(streams(calls.all())), open);
				t.true(calls.heldBytes <= limits.maxHeldBytes);
			}

			isJoined = false;
			for (const on of [undefined, ...retired]) {
				fail(calls.lost(on));
			}

			// What is left waits for the next connection.
			t.is([...calls.join()].length, open.size);
			fail(calls.all());
			t.is(calls.heldBytes, 0);
			t.true(retired.every(({awaited}) => awaited.size === 0));
		}),
		{numRuns: 500},
	);
});

test('the response to a call that the relay answered is late once, and unknown on the next connection', t => {
	const calls = new Calls(noObserver, {...defaultCallLimits, maxOpen: 3});
	for (const streamId of [1, 3]) {
		calls.request(frameOf(request(streamId, 'Check')), true, 0);
		calls.answer(streamId, 14, 0);
		t.is(calls.standing(streamId), 'late');
	}

	t.is(calls.response(frameOf(response(1)), 0), 'late');
	t.is(calls.response(frameOf(response(1)), 0), 'unknown');
	calls.lost();
	t.is(calls.response(frameOf(response(3)), 0), 'unknown');
	// What waits for a connection was not sent: nobody can answer it.
	calls.request(frameOf(request(5, 'Check')), false, 0);
	t.is(calls.response(frameOf(response(5)), 0), 'unknown');
	t.is([...calls.join()].length, 1);
	t.is(calls.response(frameOf(response(5)), 0), 'open');
	// A VM that answers nothing does not fill the memory: the oldest are forgotten.
	for (const streamId of [7, 9, 11, 13]) {
		calls.request(frameOf(request(streamId, 'ReadStdout')), true, 0);
		calls.answer(streamId, 14, 0);
	}

	t.deepEqual(
		[7, 9, 11, 13].map(streamId => calls.standing(streamId)),
		['unknown', 'late', 'late', 'late'],
	);
});

test('at most 256 characters of a method name are kept', t => {
	const calls = new Calls(noObserver, defaultCallLimits);
	calls.request(frameOf(request(1, 'x'.repeat(1_000_000))), true, 0);
	t.is(calls.all()[0]?.method.length, 256);
});

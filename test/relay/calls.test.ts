import {readFile} from 'node:fs/promises';
import test from 'ava';
import fc from 'fast-check';
import {CallObserver, FrameSkimmer, methodOf} from '../../src/relay/calls.ts';
import {encodeFrame, Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {encodeRequest, encodeResponse, peekMethod} from '../../src/ttrpc/message.ts';
import {capturedLog} from './harness.ts';

const cut = (bytes: Buffer, sizes: readonly number[]): Buffer[] => {
	const pieces: Buffer[] = [];
	for (let position = 0, n = 0; position < bytes.length; n++) {
		const size = sizes[n % sizes.length] ?? 1;
		pieces.push(bytes.subarray(position, position + size));
		position += size;
	}

	return pieces;
};
const sizes = fc.array(fc.integer({min: 1, max: 700}), {minLength: 1, maxLength: 20});

test('any chunking of the recorded conversation shows the same calls as decoding it', async t => {
	const client = await readFile(new URL('../fixtures/kata-shim/agent.client.bin', import.meta.url));
	const expected = [...new FrameDecoder().push(client)].map(frame => {
		const summary = frame instanceof Frame ? peekMethod(frame.message) : undefined;
		return [frame.streamId, `${summary?.service ?? ''}/${summary?.method ?? ''}`];
	});
	t.is(expected.length, 33);
	fc.assert(fc.property(sizes, chunking => {
		const seen: unknown[] = [];
		const skimmer = new FrameSkimmer(({streamId}, prefix) => {
			seen.push([streamId, methodOf(prefix)]);
		});
		t.true(cut(client, chunking).every(piece => skimmer.push(piece)));
		t.deepEqual(seen, expected);
	}));
});

test('answers are matched to their calls in whatever order, with method, time and status', async t => {
	const {log, lines} = await capturedLog();
	let now = 0;
	const calls = new CallObserver(log, () => now);
	const request = (streamId: number, method: string, payload = Buffer.alloc(0)): Buffer =>
		encodeFrame({streamId, type: frameType.request, flags: 0}, encodeRequest({service: 'grpc.AgentService', method, payload, timeoutNano: 0n, metadata: []}));
	const response = (streamId: number, code: number, message = ''): Buffer =>
		encodeFrame({streamId, type: frameType.response, flags: 0}, encodeResponse({status: {code, message}, payload: Buffer.alloc(0)}));
	calls.fromShim(request(1, 'WaitProcess'));
	calls.fromShim(request(3, 'CopyFile', Buffer.alloc(100_000)));
	now = 12.34;
	calls.fromVm(response(3, 5, 'x'.repeat(1000)));
	calls.fromVm(response(9, 0));
	t.is(calls.openCalls, 1);
	now = 20;
	calls.fromVm(encodeFrame({streamId: 1, type: frameType.response, flags: 0}, Buffer.alloc(0)));
	t.is(calls.openCalls, 0);
	t.deepEqual(lines.map(({method, durationMs, code}) => [method, durationMs, code]), [
		['grpc.AgentService/CopyFile', 12.3, 'NOT_FOUND'],
		['grpc.AgentService/WaitProcess', 20, 'OK'],
	]);
});

test('bytes that are no frames end the looking with one line', async t => {
	const {log, lines} = await capturedLog();
	const calls = new CallObserver(log, () => 0);
	for (let n = 0; n < 3; n++) {
		calls.fromShim(Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'));
		calls.fromVm(Buffer.from('and so on, and so on'));
	}

	t.is(lines.length, 1);
	t.is(lines[0]?.msg, 'calls are no longer observed');
});

test('no bytes make it throw or remember without bound', async t => {
	const {log} = await capturedLog();
	const frame = fc.tuple(fc.integer({min: 0, max: 5}), fc.nat(), fc.uint8Array({maxLength: 400}))
		.map(([type, streamId, message]) => encodeFrame({type, streamId, flags: 0}, message));
	fc.assert(fc.property(fc.array(fc.tuple(fc.boolean(), fc.oneof(frame, fc.uint8Array({maxLength: 50}).map(bytes => Buffer.from(bytes)))), {maxLength: 30}), sizes, (writes, chunking) => {
		const calls = new CallObserver(log, () => 0);
		for (const [fromShim, bytes] of writes) {
			for (const piece of cut(bytes, chunking)) {
				if (fromShim) {
					calls.fromShim(piece);
				} else {
					calls.fromVm(piece);
				}
			}
		}

		t.true(calls.openCalls <= writes.length);
	}), {numRuns: 200});
	const calls = new CallObserver(log, () => 0);
	for (let streamId = 1; streamId < 20_000; streamId += 2) {
		calls.fromShim(encodeFrame({streamId, type: frameType.request, flags: 0}, Buffer.alloc(0)));
	}

	t.is(calls.openCalls, 4096);
});

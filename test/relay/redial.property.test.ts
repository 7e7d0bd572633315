/**
 * Whatever is said and however often and wherever the VM is lost: every call gets one whole answer, and nothing is done
 * twice that must not be.
 */
import {once} from 'node:events';
import {setImmediate as turn} from 'node:timers/promises';
import type {TLSSocket} from 'node:tls';
import test from 'ava';
import fc from 'fast-check';
import {Frame, FrameDecoder, frameType} from '../../src/ttrpc/frame.ts';
import {statusCode} from '../../src/ttrpc/status.ts';
import {cut, FrameReader, request, response, statusOf} from './frames.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {connectShim, running} from './harness.ts';

const waiting = ['Check', 'WaitProcess', 'GetOOMEvent'];
/** A waiting call names a process; one that carries more is not taken for one. */
const onlyWaits = ({method, size}: Ask): boolean => waiting.includes(method) && size < 4000;

interface Ask {
	readonly method: string;
	readonly size: number;
	readonly answerSize: number;
}

/** How a connection to the VM is lost: after so many bytes of answers, or so many requests. */
interface Loss {
	readonly afterBytes: number;
	readonly afterRequests: number;
	readonly how: 'end' | 'destroy';
}

const lengths = fc.oneof({arbitrary: fc.nat(200), weight: 4}, {arbitrary: fc.nat(150_000), weight: 1});
const ask: fc.Arbitrary<Ask> = fc.record({
	method: fc.constantFrom(...waiting, 'CreateContainer', 'CopyFile', 'ReadStdout'),
	size: lengths,
	answerSize: lengths,
});
const loss: fc.Arbitrary<Loss> = fc.record({
	afterBytes: fc.oneof(fc.nat(300), fc.nat(200_000)),
	afterRequests: fc.integer({min: 1, max: 12}),
	how: fc.constantFrom('end', 'destroy'),
});

/** A VM that answers every request, on connections that are lost as the script says, and then on one that lasts. */
class ScriptedVm {
	/** Requests that came whole, over all connections. */
	readonly received: Frame[] = [];
	/** Answers that were begun, by stream. */
	readonly answers = new Map<number, Buffer[]>();
	losses = 0;
	readonly #script: Loss[];
	readonly #asks: readonly Ask[];

	constructor(asks: readonly Ask[], script: readonly Loss[]) {
		this.#asks = asks;
		this.#script = [...script];
	}

	serve(socket: TLSSocket): void {
		const decoder = new FrameDecoder();
		let left: Loss | undefined = this.#script.shift();
		let requests = 0;
		let bytes = 0;
		let isLost = false;
		const lose = (how: Loss['how']): void => {
			isLost = true;
			this.losses++;
			socket[how]();
		};

		socket.on('data', (chunk: Buffer) => {
			for (const frame of decoder.push(chunk)) {
				if (isLost || !(frame instanceof Frame) || frame.type !== frameType.request) {
					continue;
				}

				this.received.push(frame);
				requests++;
				const answer = response(
					frame.streamId,
					Buffer.alloc(this.#asks[(frame.streamId - 1) / 2]?.answerSize ?? 0, `${this.received.length}.`),
				);
				this.answers.set(frame.streamId, [...(this.answers.get(frame.streamId) ?? []), answer]);
				const part = answer.subarray(
					0,
					left === undefined ? answer.length : Math.max(0, left.afterBytes - bytes),
				);
				bytes += part.length;
				if (part.length > 0) {
					socket.write(part);
				}

				if (left !== undefined && (part.length < answer.length || requests >= left.afterRequests)) {
					lose(left.how);
					left = undefined;
				}
			}
		});
	}
}

test('every call gets exactly one whole answer, whenever and however often the VM is lost', async t => {
	let vm = new ScriptedVm([], []);
	let lossesSeen = 0;
	let failuresSeen = 0;
	await using run = await running(
		{allowHalfOpen: false, onConnection: socket => vm.serve(socket)},
		{redialPauseMs: [0, 1], again: {retryMs: 1}},
	);
	// The connection that proved the VM was served before there was a script.
	const first = await connectShim(run.socketPath);
	first.end();
	await onceEnded(first);
	const script = fc.record({
		asks: fc.array(ask, {minLength: 1, maxLength: 25}),
		losses: fc.array(loss, {maxLength: 4}),
		sizes: fc.array(fc.integer({min: 1, max: 5000}), {minLength: 1, maxLength: 6}),
	});
	const property = fc.asyncProperty(script, async ({asks, losses, sizes}) => {
		vm = new ScriptedVm(asks, losses);
		const askOf = ({streamId}: {readonly streamId: number}): Ask =>
			asks[(streamId - 1) / 2] ?? {method: '', size: 0, answerSize: 0};
		const shim = await connectShim(run.socketPath);
		const fromVm = new FrameReader(shim);
		const requests = asks.map(({method, size}, n) => request(2 * n + 1, method, {payload: Buffer.alloc(size, n)}));
		for (const piece of cut(Buffer.concat(requests), sizes)) {
			shim.write(piece);
			if (piece.length % 3 === 0) {
				await turn();
			}
		}

		const answers = await answered(fromVm.take(asks.length));
		t.is(new Set(answers.map(({streamId}) => streamId)).size, asks.length);
		for (const answer of answers) {
			const asked = askOf(answer);
			if (statusOf(answer).code === statusCode.unavailable) {
				failuresSeen++;
				t.false(onlyWaits(asked), `${asked.method} failed`);
				t.true(vm.losses > 0);
			} else {
				t.true(
					vm.answers.get(answer.streamId)?.some(sent => sent.equals(answer.bytes)),
					`${asked.method}: not what the VM said`,
				);
			}
		}

		for (const received of vm.received) {
			t.true(received.bytes.equals(requests[(received.streamId - 1) / 2] ?? Buffer.alloc(0)));
		}

		const notAgain = vm.received.filter(({streamId}) => !onlyWaits(askOf({streamId})));
		t.is(new Set(notAgain.map(({streamId}) => streamId)).size, notAgain.length, 'made twice');
		lossesSeen += vm.losses;

		// Nothing comes after the last answer but the answer to the next call.
		const last = 2 * asks.length + 1;
		shim.write(request(last, 'Check'));
		t.is((await answered(fromVm.next())).streamId, last);
		t.deepEqual([fromVm.waiting, fromVm.heldBytes], [[], 0]);
		const ended = onceEnded(shim);
		shim.end();
		await answered(ended);
	});
	await fc.assert(property, {numRuns: 150, interruptAfterTimeLimit: 8000, markInterruptAsFailure: false});
	// On a slow machine those were few.
	for (let more = 0; more < 20 && (lossesSeen <= 20 || failuresSeen <= 20); more++) {
		await fc.assert(property, {numRuns: 10});
	}

	t.true(lossesSeen > 20 && failuresSeen > 20, `${lossesSeen} losses, ${failuresSeen} failed calls`);
	await run.forwarder.idle();
});

/** A call that is never answered is to be shown with its script, not to hang. */
async function answered<T>(promise: Promise<T>): Promise<T> {
	return abortable(promise, AbortSignal.timeout(60_000));
}

async function onceEnded(shim: Awaited<ReturnType<typeof connectShim>>): Promise<void> {
	await once(shim.resume(), 'end');
}

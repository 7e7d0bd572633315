/** Time-boxed: whatever bytes come, in whatever chunks, the server stays up, its memory bounded, and others are served. */
import {once} from 'node:events';
import {setFlagsFromString} from 'node:v8';
import {runInNewContext} from 'node:vm';
import test from 'ava';
import * as fc from 'fast-check';
import {connect} from '../../src/ttrpc/client.ts';
import {encodeFrame} from '../../src/ttrpc/frame.ts';
import {encodeRequest} from '../../src/ttrpc/message.ts';
import {cut} from './conversation.ts';
import {method, RawClient, serve} from './peers.ts';

const bytes = (maxLength: number): fc.Arbitrary<Buffer> => fc.uint8Array({maxLength}).map(array => Buffer.from(array));

/** From noise to nearly right: each layer is reached. */
const hostile = fc.array(fc.oneof(
	bytes(200),
	fc.record({streamId: fc.nat(9), type: fc.nat(4), flags: fc.nat(7), message: bytes(100)}).map(({message, ...header}) => encodeFrame(header, message)),
	fc.record({
		streamId: fc.nat(9).map(id => id * 2 + 1),
		method: fc.constantFrom('Version', 'StartVM', 'Other'),
		payload: bytes(20),
		timeoutNano: fc.bigInt({min: -1n, max: 10_000_000n}),
	}).map(({streamId, ...request}) => encodeFrame({streamId, type: 1, flags: 0}, encodeRequest({service: 'hypervisor.Hypervisor', metadata: [], ...request}))),
	fc.nat(0xff_ff_ff_ff).map(length => {
		const header = Buffer.from('00000000000000010100', 'hex');
		header.writeUInt32BE(length);
		return header;
	}),
), {maxLength: 12}).map(parts => Buffer.concat(parts));

function collectGarbage(): void {
	setFlagsFromString('--expose-gc');
	(runInNewContext('gc') as () => void)();
}

test('a server survives hostile bytes in hostile chunks, bounded in memory, and serves others meanwhile', async t => {
	const running = new Set<AbortSignal>();
	const peer = await serve(t, {
		Version: async ({version}: {version: string}) => ({version}),
		async StartVM(_request: object, {signal}) {
			running.add(signal);
			if (!signal.aborted) {
				await once(signal, 'abort');
			}

			running.delete(signal);
			return {};
		},
	});
	const client = await peer.client();
	let attacks = 0;
	collectGarbage();
	const before = process.memoryUsage();
	await fc.assert(fc.asyncProperty(hostile, fc.array(fc.double({min: 0, max: 1, noNaN: true}), {maxLength: 8}), fc.boolean(), async (attack, fractions, leavesRudely) => {
		attacks++;
		const raw = await RawClient.connect(peer.path);
		for (const chunk of cut(attack, fractions)) {
			if (raw.socket.writable) {
				await new Promise(resolve => raw.socket.write(chunk, resolve));
			}
		}

		t.like(await client.call(method('Version'), {version: 'well'}, {timeoutMs: 5000}, AbortSignal.timeout(5000)), {version: 'well'});
		const closed = once(raw.socket, 'close');
		if (leavesRudely) {
			raw.socket.destroy();
		} else {
			raw.socket.end();
		}

		await closed;
	}), {interruptAfterTimeLimit: 2000, numRuns: 100_000});
	t.true(attacks > 20, `${attacks} attacks`);
	while (running.size > 0) {
		await new Promise(resolve => setImmediate(resolve));
	}

	collectGarbage();
	const after = process.memoryUsage();
	t.true(after.arrayBuffers - before.arrayBuffers < 10_000_000, `${after.arrayBuffers - before.arrayBuffers} bytes of buffers kept`);
	t.true(after.heapUsed - before.heapUsed < 50_000_000, `${after.heapUsed - before.heapUsed} bytes of heap kept`);
});

test('whatever a server sends, each call of a client settles once it is gone', async t => {
	let answer = Buffer.alloc(0);
	const peer = await serve(t, {}, {}, (_server, socket) => {
		socket.on('error', () => undefined);
		socket.once('data', () => socket.end(answer));
	});
	const signal = AbortSignal.timeout(20_000);
	const settled = {fulfilled: 0, rejected: 0};
	const responses = fc.array(fc.record({streamId: fc.constantFrom(1, 2, 3), type: fc.constantFrom(1, 2, 2, 2, 3, 4), flags: fc.nat(7), message: bytes(12)})
		.map(({message, ...header}) => encodeFrame(header, message)), {maxLength: 6}).map(frames => Buffer.concat(frames));
	await fc.assert(fc.asyncProperty(fc.oneof(hostile, responses), async attack => {
		answer = attack;
		const client = await connect(peer.path, signal);
		const calls = [1, 3, 5].map(async () => client.call(method('Version'), {}, {}, signal));
		for (const {status} of await Promise.allSettled(calls)) {
			settled[status]++;
		}

		await client.closed;
	}), {interruptAfterTimeLimit: 1000, numRuns: 100_000});
	t.false(signal.aborted);
	t.true(settled.fulfilled > 0 && settled.rejected > 0, JSON.stringify(settled));
});

test('frames that are announced and never sent cost next to nothing', async t => {
	const peer = await serve(t, {Version: async () => ({})});
	const before = process.memoryUsage.rss();
	for (let index = 0; index < 50; index++) {
		const raw = await peer.raw();
		raw.socket.write(Buffer.from('00400000000000010100', 'hex'));
	}

	const client = await peer.client();
	await client.call(method('Version'), {}, {}, AbortSignal.timeout(5000));
	t.true(process.memoryUsage.rss() - before < 100_000_000);
});

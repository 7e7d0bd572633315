/** Whatever bytes come, in whatever chunks, the server stays up, its memory bounded, and others are served. */
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

const never = new AbortController().signal;
const bytes = (maxLength: number): fc.Arbitrary<Buffer> => fc.uint8Array({maxLength}).map(array => Buffer.from(array));

/** From noise to nearly right: each layer is reached. */
const hostile = fc
	.array(
		fc.oneof(
			bytes(200),
			fc
				.record({streamId: fc.nat(9), type: fc.nat(4), flags: fc.nat(7), message: bytes(100)})
				.map(({message, ...header}) => encodeFrame(header, message)),
			fc
				.record({
					streamId: fc.nat(9).map(id => id * 2 + 1),
					method: fc.constantFrom('Version', 'StartVM', 'Other'),
					payload: bytes(20),
					timeoutNano: fc.bigInt({min: -1n, max: 10_000_000n}),
				})
				.map(({streamId, ...request}) =>
					encodeFrame(
						{streamId, type: 1, flags: 0},
						encodeRequest({service: 'hypervisor.Hypervisor', metadata: [], ...request}),
					),
				),
			fc.nat(0xff_ff_ff_ff).map(length => {
				const header = Buffer.from('00000000000000010100', 'hex');
				header.writeUInt32BE(length);
				return header;
			}),
		),
		{maxLength: 12},
	)
	.map(parts => Buffer.concat(parts));

function memoryAfterCollection(): NodeJS.MemoryUsage {
	setFlagsFromString('--expose-gc');
	(runInNewContext('gc') as () => void)();
	return process.memoryUsage();
}

/**
 * What is garbage is freed by a thread of its own, some of it with the next collection only; what is kept is kept
 * however often one looks.
 */
async function memoryOnceWithin(isWithin: (memory: NodeJS.MemoryUsage) => boolean): Promise<NodeJS.MemoryUsage> {
	let memory = memoryAfterCollection();
	for (let looks = 1; looks < 50 && !isWithin(memory); looks++) {
		await new Promise(resolve => {
			setTimeout(resolve, 10);
		});
		memory = memoryAfterCollection();
	}

	return memory;
}

// Alone in the process, as is each test here that looks at its memory.
test.serial(
	'a server survives hostile bytes in hostile chunks, bounded in memory, and serves others meanwhile',
	async t => {
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
		const before = memoryAfterCollection();
		await fc.assert(
			fc.asyncProperty(
				hostile,
				fc.array(fc.double({min: 0, max: 1, noNaN: true}), {maxLength: 8}),
				fc.boolean(),
				async (attack, fractions, leavesRudely) => {
					const raw = await RawClient.connect(peer.path);
					for (const chunk of cut(attack, fractions)) {
						if (raw.socket.writable) {
							await new Promise(resolve => raw.socket.write(chunk, resolve));
						}
					}

					t.like(await client.call(method('Version'), {version: 'well'}, {timeoutMs: 60_000}, never), {
						version: 'well',
					});
					const closed = once(raw.socket, 'close');
					if (leavesRudely) {
						raw.socket.destroy();
					} else {
						raw.socket.end();
					}

					await closed;
				},
			),
			{numRuns: 300},
		);
		while (running.size > 0) {
			await new Promise(resolve => setImmediate(resolve));
		}

		const after = await memoryOnceWithin(
			({arrayBuffers, heapUsed}) =>
				arrayBuffers - before.arrayBuffers < 10_000_000 && heapUsed - before.heapUsed < 50_000_000,
		);
		t.true(
			after.arrayBuffers - before.arrayBuffers < 10_000_000,
			`${after.arrayBuffers - before.arrayBuffers} bytes of buffers kept`,
		);
		t.true(after.heapUsed - before.heapUsed < 50_000_000, `${after.heapUsed - before.heapUsed} bytes of heap kept`);
	},
);

test('whatever a server sends, each call of a client settles when the connection is closed', async t => {
	let answer = Buffer.alloc(0);
	const peer = await serve(t, {}, {}, (_server, socket) => {
		socket.on('error', () => undefined);
		socket.once('data', () => socket.end(answer));
	});
	const signal = AbortSignal.timeout(100_000);
	const settled = {fulfilled: 0, rejected: 0};
	const responses = fc
		.array(
			fc
				.record({
					streamId: fc.constantFrom(1, 2, 3),
					type: fc.constantFrom(1, 2, 2, 2, 3, 4),
					flags: fc.nat(7),
					message: bytes(12),
				})
				.map(({message, ...header}) => encodeFrame(header, message)),
			{maxLength: 6},
		)
		.map(frames => Buffer.concat(frames));
	await fc.assert(
		fc.asyncProperty(fc.oneof(hostile, responses), async attack => {
			answer = attack;
			const client = await connect(peer.path, signal);
			const calls = [1, 3, 5].map(async () => client.call(method('Version'), {}, {}, signal));
			for (const {status} of await Promise.allSettled(calls)) {
				settled[status]++;
			}

			await client.closed;
		}),
		{numRuns: 300, examples: [[encodeFrame({streamId: 1, type: 2, flags: 0}, Buffer.alloc(0))], [Buffer.alloc(0)]]},
	);
	t.false(signal.aborted);
	t.true(settled.fulfilled > 0 && settled.rejected > 0, JSON.stringify(settled));
});

test.serial('frames that are announced and never sent cost next to nothing', async t => {
	const peer = await serve(t, {Version: async () => ({})});
	const before = memoryAfterCollection().rss;
	for (let index = 0; index < 50; index++) {
		const raw = await peer.raw();
		raw.socket.write(Buffer.from('00400000000000010100', 'hex'));
	}

	const client = await peer.client();
	await client.call(method('Version'), {}, {}, never);
	t.true(memoryAfterCollection().rss - before < 100_000_000);
});

test('requests that come at once begin over several turns of the event loop', async t => {
	let begun = 0;
	const peer = await serve(t, {
		Version: async () => {
			begun++;
			return {};
		},
	});
	const raw = await peer.raw();
	for (let streamId = 1; streamId < 1800; streamId += 2) {
		raw.request({}, {streamId});
	}

	let most = 0;
	for (let before = 0; before < 900;) {
		await new Promise(resolve => setImmediate(resolve));
		most = Math.max(most, begun - before);
		before = begun;
	}

	t.is((await raw.responses(900)).length, 900);
	t.true(most <= 512, `${most} in one turn`);
});

test('after ten protocol violations, the connection of the client ends with the reason, and no other', async t => {
	const reasons: Error[] = [];
	const peer = await serve(t, {Version: async () => ({})}, {onBroken: reason => reasons.push(reason)});
	const [raw, client] = [await peer.raw(), await peer.client()];
	for (let n = 0; n < 10; n++) {
		raw.request({}, {type: n % 2 === 0 ? 2 : 77});
	}

	// Data of a stream that was refused breaks nothing.
	raw.request({}, {type: 3});
	raw.request({});
	t.deepEqual(await raw.codes(1), [[1, 0]]);
	t.deepEqual(reasons, []);
	raw.request({}, {type: 0});
	await once(raw.socket, 'close');
	t.deepEqual(
		reasons.map(({message}) => message),
		[
			'the peer broke the ttrpc protocol: it sent a response from the client side 5 times, a frame of a reserved type 6 times',
		],
	);
	await t.notThrowsAsync(client.call(method('Version'), {}, {}, never));
});

test('the error for an unknown method contains at most 256 characters of its name', async t => {
	const peer = await serve(t, {});
	const raw = await peer.raw();
	raw.request({method: 'x'.repeat(1_000_000)});
	const [response] = await raw.responses(1);
	const status = response?.[1].status;
	t.regex(status?.message ?? '', /^Unknown service or method: \/hypervisor.Hypervisor\/x+…$/);
	t.true((status?.message.length ?? Infinity) < 300);
});

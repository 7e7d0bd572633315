/** A peer that floods its connection gets its share of each turn of the event loop, and no more. */
import {once} from 'node:events';
import {connect, createServer, type Socket} from 'node:net';
import {join} from 'node:path';
import {setImmediate as turn} from 'node:timers/promises';
import test, {type ExecutionContext} from 'ava';
import * as fc from 'fast-check';
import {encodeFrame, Frame, type OversizedFrame} from '../../src/ttrpc/frame.ts';
import {defaultTurnBudget, PacedReader, type PacedReaderOptions} from '../../src/ttrpc/paced-reader.ts';
import {directoryOf} from '../support/directory.ts';

const tenBytes = (count: number, streamId = 1): Buffer =>
	Buffer.concat(Array.from({length: count}, () => encodeFrame({streamId, type: 3, flags: 0}, Buffer.alloc(0))));

/** Both ends of a connection; what accepts is not read from yet. */
async function pair(t: ExecutionContext): Promise<{sender: Socket; receiver: Socket}> {
	const path = join(await directoryOf(t), 'socket');
	const server = createServer({pauseOnConnect: true, allowHalfOpen: true});
	server.listen(path);
	await once(server, 'listening');
	const sender = connect(path);
	const [receiver] = (await once(server, 'connection')) as [Socket];
	t.teardown(() => {
		sender.destroy();
		receiver.destroy();
		server.close();
	});
	return {sender, receiver};
}

interface Told {
	readonly frames: Array<Frame | OversizedFrame>;
	readonly events: string[];
	readonly reader: PacedReader;
	readonly closed: Promise<undefined>;
}

function read(
	socket: Socket,
	options: PacedReaderOptions = {},
	onFrame: (count: number) => void = () => undefined,
): Told {
	const {promise: closed, resolve} = Promise.withResolvers<undefined>();
	const frames: Array<Frame | OversizedFrame> = [];
	const events: string[] = [];
	const reader = new PacedReader(
		socket,
		{
			frames(some) {
				for (const frame of some) {
					frames.push(frame);
					onFrame(frames.length);
				}
			},
			ended() {
				events.push(`ended after ${frames.length}`);
				socket.end();
			},
			closed() {
				events.push('closed');
				resolve(undefined);
			},
		},
		options,
	);
	return {frames, events, reader, closed};
}

/** Everything is written and lies in the kernel. */
async function written(socket: Socket, bytes: Buffer): Promise<void> {
	await new Promise(resolve => {
		socket.write(bytes, resolve);
	});
}

test('frames of another connection are delivered during a flood', async t => {
	const [flood, other] = [await pair(t), await pair(t)];
	await written(flood.sender, tenBytes(6000));
	await written(other.sender, tenBytes(1));
	let before = Infinity;
	const flooded = read(flood.receiver);
	const quiet = read(other.receiver, {}, () => {
		before = flooded.frames.length;
	});
	while (quiet.frames.length === 0) {
		await turn();
	}

	t.true(before <= 2 * defaultTurnBudget.frames, `${before} frames of the flood came first`);
	while (flooded.frames.length < 6000) {
		await turn();
	}

	t.pass();
});

test('no turn of the event loop takes more than its budget of frames, or of bytes', async t => {
	for (const [bytes, budget] of [
		[tenBytes(6000), {frames: 100, bytes: Infinity}],
		[tenBytes(6000), {frames: Infinity, bytes: 1}],
	] as const) {
		const {sender, receiver} = await pair(t);
		await written(sender, bytes);
		const {frames} = read(receiver, {budget});
		for (let before = 0, turns = 0; frames.length < 6000; before = frames.length, turns++) {
			await turn();
			// What the poll phase has taken, and what the check phase has, which begins a new turn.
			t.true(
				frames.length - before <= (budget.frames === Infinity ? (2 * 65_536) / 10 + 1 : 2 * budget.frames),
				`${frames.length - before} frames in turn ${turns}`,
			);
		}
	}
});

test('however frames are cut and whatever the budget, all come, in their order, and the end after them', async t => {
	const piece = fc.nat(3000).map(length => Buffer.alloc(length, 1));
	await fc.assert(
		fc.asyncProperty(
			fc.array(piece, {maxLength: 60}),
			fc.integer({min: 1, max: 20}),
			fc.array(fc.boolean(), {minLength: 1, maxLength: 8}),
			async (messages, budget, wanted) => {
				const {sender, receiver} = await pair(t);
				const sent = messages.map((message, streamId) => encodeFrame({streamId, type: 3, flags: 0}, message));
				const told = read(receiver, {budget: {frames: budget, bytes: budget * 500}});
				sender.end(Buffer.concat(sent));
				sender.resume();
				// Back-pressure comes and goes meanwhile.
				for (const shall of wanted) {
					told.reader.isReading = shall;
					await turn();
				}

				told.reader.isReading = true;
				await told.closed;
				t.deepEqual(
					told.frames.map(frame => frame instanceof Frame && frame.bytes),
					sent,
				);
				t.deepEqual(told.events, [`ended after ${sent.length}`, 'closed']);
			},
		),
		{numRuns: 100},
	);
});

test('while the reader is paused, no waiting frames are delivered', async t => {
	const {sender, receiver} = await pair(t);
	await written(sender, tenBytes(1000));
	const told = read(receiver, {budget: {frames: 10, bytes: Infinity}}, () => {
		told.reader.isReading = false;
	});
	while (told.frames.length === 0) {
		await turn();
	}

	const before = told.frames.length;
	for (let turns = 0; turns < 50; turns++) {
		await turn();
	}

	t.is(told.frames.length, before);
	told.reader.isReading = true;
	while (told.frames.length === before) {
		await turn();
	}

	t.pass();
});

test('a reader that is stopped during a flood delivers nothing more, and still reports the close', async t => {
	const {sender, receiver} = await pair(t);
	await written(sender, tenBytes(1000));
	const told = read(receiver, {}, count => {
		if (count === 5) {
			told.reader.stop();
			receiver.destroy();
		}
	});
	await told.closed;
	t.is(told.frames.length, 5);
	t.deepEqual(told.events, ['closed']);
});

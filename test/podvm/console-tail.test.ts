// What is kept of a console, and how harmless it is. The console is scripted: libvirt's test driver has none.
import test from 'ava';
import fc from 'fast-check';
import {silentLogger} from '../../src/core/log.ts';
import {ConsoleTail} from '../../src/podvm/console-tail.ts';
import type {LibvirtCalls} from '../../src/podvm/libvirt-calls.ts';

const domain = {name: 'podvm-web-01234567', uuid: Buffer.alloc(16, 1), id: 1};

/** Only its console may be used. */
function sessionPrinting(print: (signal: AbortSignal) => AsyncGenerator<Buffer, void, undefined>): LibvirtCalls {
	return {console: (_domain: unknown, signal: AbortSignal) => print(signal)} as LibvirtCalls;
}

async function linesOf(...chunks: ReadonlyArray<string | Buffer>): Promise<readonly string[]> {
	const tail = new ConsoleTail();
	using _following = tail.follow(
		sessionPrinting(async function* () {
			yield* chunks.map(chunk => Buffer.from(chunk));
		}),
		domain,
		silentLogger,
	);
	await tail.rest();
	return tail.lines();
}

test('the last ten lines are kept, however the output was split into chunks', async t => {
	const lines = Array.from({length: 30}, (_, index) => `line ${index} über`);
	const bytes = Buffer.from(`${lines.join('\r\n')}\r\n`);
	for (const size of [1, 7, 10_000]) {
		const chunks = Array.from({length: Math.ceil(bytes.length / size)}, (_, index) =>
			bytes.subarray(index * size, (index + 1) * size),
		);
		t.deepEqual(await linesOf(...chunks), lines.slice(-10));
	}
});

test('control sequences, empty lines and the frames of a panic are left out', async t => {
	t.deepEqual(
		await linesOf(
			'\u001B[0;32m  OK  \u001B[0m started\n\n\t\n',
			'[    6.78] Kernel panic - not syncing: sysrq\n[    6.79]  [<0000000000a17d08>] panic+0x118/0x310\n[    6.79] ([<0000000000a17d08>] panic+0x118/0x310)\n',
		),
		['OK   started', '[    6.78] Kernel panic - not syncing: sysrq'],
	);
});

test('whatever a guest prints, it becomes few short lines of printable text', async t => {
	await fc.assert(
		fc.asyncProperty(
			fc.array(fc.oneof(fc.uint8Array({maxLength: 3000}), fc.string({unit: 'binary', maxLength: 500}))),
			async chunks => {
				const lines = await linesOf(...chunks.map(chunk => Buffer.from(chunk as Uint8Array)));
				t.true(
					lines.length <= 10 &&
						lines.every(line => line.length <= 160 && !/[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]/u.test(line)),
					JSON.stringify(lines),
				);
			},
		),
		{numRuns: 100},
	);
});

test('a guest that prints without end is read no further than a megabyte', async t => {
	let printed = 0;
	const tail = new ConsoleTail();
	using _following = tail.follow(
		sessionPrinting(async function* () {
			for (;;) {
				printed++;
				yield Buffer.alloc(65_536, 'x\n');
			}
		}),
		domain,
		silentLogger,
	);
	await tail.rest();
	t.true(printed <= 17, `${printed} times 64 KiB`);
});

test('a console that cannot be read has no effect; disposing releases the console', async t => {
	const tail = new ConsoleTail();
	const [waiting, returned] = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
	const following = tail.follow(
		sessionPrinting(async function* (signal) {
			yield Buffer.from('so far\n');
			await new Promise((_resolve, reject) => {
				signal.addEventListener(
					'abort',
					() => {
						returned.resolve(undefined);
						reject(signal.reason as Error);
					},
					{once: true},
				);
				waiting.resolve(undefined);
			});
		}),
		domain,
		silentLogger,
	);
	await waiting.promise;
	following[Symbol.dispose]();
	await returned.promise;
	await tail.rest();
	t.deepEqual(tail.lines(), ['so far']);
	using _refused = tail.follow(
		sessionPrinting(async function* () {
			yield* [];
			throw new Error('Active console session exists for this domain');
		}),
		domain,
		silentLogger,
	);
	await tail.rest();
	t.deepEqual(tail.lines(), ['so far']);
});

test('a reader gets the output after its position, waits for more, and opens the console itself', async t => {
	const tail = new ConsoleTail();
	const more = Promise.withResolvers<undefined>();
	let opened = 0;
	const session = sessionPrinting(async function* (signal) {
		opened++;
		yield Buffer.from('first\n');
		await more.promise;
		yield Buffer.from('second\n');
		await new Promise(resolve => signal.addEventListener('abort', resolve, {once: true}));
	});
	const {signal} = new AbortController();
	const first = await tail.after(0, session, domain, signal);
	t.deepEqual([first.output.toString(), first.position], ['first\n', 6]);
	const next = tail.after(first.position, session, domain, signal);
	more.resolve(undefined);
	const second = await next;
	t.deepEqual([second.output.toString(), second.position], ['second\n', 13]);
	t.is((await tail.after(3, session, domain, signal)).output.toString(), 'st\nsecond\n');
	t.is(opened, 1);
	await t.throwsAsync(tail.after(13, session, domain, AbortSignal.abort(new Error('gone'))), {message: 'gone'});
});

test('a reader of a console that cannot be opened gets its error', async t => {
	const session = sessionPrinting(async function* () {
		throw new Error('active console session exists');
	});
	await t.throwsAsync(new ConsoleTail().after(0, session, domain, new AbortController().signal), {
		message: 'active console session exists',
	});
});

/** Uploads and downloads: with libvirt's real storage driver, and with a daemon that misbehaves. */
import {randomBytes} from 'node:crypto';
import {chown, mkdir, readFile, stat} from 'node:fs/promises';
import {setImmediate} from 'node:timers/promises';
import anyTest, {type ExecutionContext, type TestFn} from 'ava';
import {DeadlineError} from '../../src/core/lifetime.ts';
import {LibvirtConnectionError, LibvirtError} from '../../src/libvirt/wire/errors.ts';
import {messageStatus, messageType, streamPayload, type Packet} from '../../src/libvirt/wire/packet.ts';
import {procedures, type StoragePool, type StorageVol} from '../../src/libvirt/wire/procedures.ts';
import type {LibvirtSessionOptions} from '../../src/libvirt/session-options.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {openUnixPipe} from '../../src/libvirt/transport/unix-pipe.ts';
import {parseLibvirtUri, type UnixUri} from '../../src/libvirt/uri.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';
import {startScriptedDaemon, type Peer, type ScriptedDaemon} from './scripted-daemon.ts';

interface Context {
	resources: AsyncDisposableStack;
	session: LibvirtSession;
	pool: StoragePool;
}

const test = anyTest as TestFn<Context>;
const patient = new AbortController().signal;
const somewhere: StorageVol = {pool: 'p', name: 'v', key: '/p/v'};

test.before('a libvirtd with a storage pool', async t => {
	await using resources = new AsyncDisposableStack();
	const libvirtd = resources.use(await startTestLibvirtd());
	const session = resources.use(
		new LibvirtSession({
			openPipe: openUnixPipe(
				parseLibvirtUri(`qemu+unix:///session?socket=${libvirtd.socketPath}`) as UnixUri,
				{},
			),
			uri: 'qemu:///session',
		}),
	);
	const path = `${libvirtd.directory}/pool`;
	await mkdir(path);
	await chown(path, libvirtd.uid, libvirtd.uid);
	const {pool} = await session.call(
		procedures.storagePoolCreateXml,
		{xml: `<pool type="dir"><name>p</name><target><path>${path}</path></target></pool>`, flags: 0},
		patient,
	);
	t.context = {resources: resources.move(), session, pool};
});

test.after.always('nothing is left', async t => {
	await t.context.resources.disposeAsync();
});

async function createVolume(
	{context: {session, pool}}: ExecutionContext<Context>,
	name: string,
	capacity: number,
): Promise<StorageVol> {
	const xml = `<volume><name>${name}</name><capacity>${capacity}</capacity><allocation>0</allocation><target><format type="raw"/></target></volume>`;
	return (await session.call(procedures.storageVolCreateXml, {pool, xml, flags: 0}, patient)).vol;
}

async function* inChunks(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
	for (let offset = 0; offset < bytes.length; offset += size) {
		yield bytes.subarray(offset, offset + size);
	}
}

async function* endless(onChunk: () => void = () => undefined): AsyncGenerator<Uint8Array> {
	const chunk = Buffer.alloc(streamPayload);
	for (;;) {
		onChunk();
		yield chunk;
	}
}

async function collect(source: AsyncIterable<Buffer>): Promise<Buffer> {
	const parts: Buffer[] = [];
	for await (const part of source) {
		parts.push(part);
	}

	return Buffer.concat(parts);
}

for (const [what, size, chunk, known] of [
	['small bytes on the shared connection', 400_000, 10_000, true],
	['many bytes on a connection of its own', 20_000_000, 1_000_000, true],
	['bytes of unknown length', 3_000_001, 65_536, false],
	['no byte', 0, 1, false],
] as const) {
	test(`${what} arrive in the volume and come back`, async t => {
		const {session} = t.context;
		const vol = await createVolume(t, what.replaceAll(' ', '-'), size);
		const bytes = randomBytes(size);
		await session.upload(vol, inChunks(bytes, chunk), known ? {length: size} : {}, patient);
		t.true((await readFile(vol.key)).equals(bytes));
		t.true((await collect(session.download(vol, {}, patient))).equals(bytes));
	});
}

test('offset and length choose a part', async t => {
	const {session} = t.context;
	const vol = await createVolume(t, 'part', 100_000);
	await session.upload(vol, inChunks(Buffer.alloc(1000, 'x'), 300), {offset: 5000, length: 1000}, patient);
	const part = await collect(session.download(vol, {offset: 4999, length: 1002n}, patient));
	t.is(part.toString(), `\0${'x'.repeat(1000)}\0`);
});

for (const [what, length] of [
	['the shared connection', 1000],
	['a connection of its own', 0],
] as const) {
	test(`more data than fits is refused during the upload on ${what}, and calls continue`, async t => {
		const {session} = t.context;
		const vol = await createVolume(t, `full-${length}`, 1_000_000);
		const range = length === 0 ? {offset: 0, length: 9_000_000} : {length};
		const source = length === 0 ? inChunks(Buffer.alloc(9_500_000), 500_000) : endless();
		const error = await t.throwsAsync(session.upload(vol, source, range, patient), {
			instanceOf: LibvirtError,
			code: 'resource-exhausted',
		});
		t.is(error.libvirtCode, 38);
		t.is((await session.call(procedures.storageVolLookupByPath, {path: vol.key}, patient)).vol.name, vol.name);
	});
}

test('an abort ends an upload whose source hangs, and the volume can be deleted at once', async t => {
	const {session} = t.context;
	const vol = await createVolume(t, 'hangs', 1_000_000);
	const abort = new AbortController();
	const upload = session.upload(
		vol,
		(async function* () {
			yield Buffer.alloc(1000);
			abort.abort(new Error('enough'));
			await new Promise(() => undefined);
		})(),
		{length: 1_000_000},
		abort.signal,
	);
	await t.throwsAsync(upload, {message: 'enough'});
	await session.call(procedures.storageVolDelete, {vol, flags: 0}, patient);
});

test('a source that fails ends the upload with its error', async t => {
	const {session} = t.context;
	const vol = await createVolume(t, 'fails', 1_000_000);
	const upload = session.upload(
		vol,
		(async function* () {
			yield Buffer.alloc(1000);
			throw new Error('disk unplugged');
		})(),
		{},
		patient,
	);
	await t.throwsAsync(upload, {message: 'disk unplugged'});
});

test('a download that is left early ends its stream', async t => {
	const {session} = t.context;
	const vol = await createVolume(t, 'left', 10_000_000);
	for await (const bytes of session.download(vol, {}, patient)) {
		t.true(bytes.length > 0);
		break;
	}

	await session.call(procedures.storageVolDelete, {vol, flags: 0}, patient);
});

test('a volume that is not there is refused before the first byte', async t => {
	const {session} = t.context;
	await t.throwsAsync(collect(session.download({...somewhere, name: 'none'}, {}, patient)), {
		instanceOf: LibvirtError,
		code: 'not-found',
	});
	let asked = 0;
	await t.throwsAsync(
		session.upload(
			{...somewhere, name: 'none'},
			endless(() => asked++),
			{length: 5},
			patient,
		),
		{instanceOf: LibvirtError, code: 'not-found'},
	);
	t.is(asked, 0);
});

test('a volume whose name is taken is refused', async t => {
	await createVolume(t, 'taken', 1);
	const error = await t.throwsAsync(createVolume(t, 'taken', 1), {instanceOf: LibvirtError, code: 'already-exists'});
	t.is(error.libvirtCode, 90);
});

test('a volume grows by resize', async t => {
	const {session} = t.context;
	const vol = await createVolume(t, 'grows', 1_000_000);
	await session.call(procedures.storageVolResize, {vol, capacity: 2_000_000n, flags: 0}, patient);
	t.is((await session.call(procedures.storageVolGetInfo, {vol}, patient)).capacity, 2_000_000n);
});

test('ten downloads at once all arrive', async t => {
	const {session} = t.context;
	const vol = await createVolume(t, 'ten', 1_000_000);
	const bytes = randomBytes(1_000_000);
	await session.upload(vol, inChunks(bytes, 100_000), {length: bytes.length}, patient);
	const copies = await Promise.all(Array.from({length: 10}, async () => collect(session.download(vol, {}, patient))));
	t.true(copies.every(copy => copy.equals(bytes)));
});

async function scripted(
	t: ExecutionContext<Context>,
	options: Partial<LibvirtSessionOptions> = {},
): Promise<{daemon: ScriptedDaemon; session: LibvirtSession}> {
	const daemon = await startScriptedDaemon();
	const session = new LibvirtSession({openPipe: daemon.openPipe, uri: 'test:///default', ...options});
	t.teardown(async () => {
		await session[Symbol.asyncDispose]();
		await daemon[Symbol.asyncDispose]();
	});
	return {daemon, session};
}

async function openStream({daemon}: {readonly daemon: ScriptedDaemon}): Promise<{peer: Peer; call: Packet}> {
	const peer = await daemon.peers.next();
	const call = await peer.received.next();
	peer.send(call, messageType.reply, messageStatus.ok, Buffer.alloc(0));
	return {peer, call};
}

test('an upload is CALL, data with the same serial, OK, and waits for the OK of the daemon', async t => {
	const stage = await scripted(t);
	let done = false;
	const upload = stage.session
		.upload(somewhere, inChunks(Buffer.alloc(streamPayload + 1, 7), 1_000_000), {}, patient)
		.then(() => {
			done = true;
		});
	const {peer, call} = await openStream(stage);
	const packets = [await peer.received.next(), await peer.received.next(), await peer.received.next()];
	t.deepEqual(
		packets.map(({type, status, body}) => [type, status, body.length]),
		[
			[3, 2, streamPayload],
			[3, 2, 1],
			[3, 0, 0],
		],
	);
	t.true(packets.every(({serial, procedure}) => serial === call.serial && procedure === 208));
	t.false(done);
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	await upload;
});

test('zeros of a sparse stream take no space in the volume, and come back as zeros', async t => {
	const {session} = t.context;
	const megabyte = 1024 * 1024;
	const [one, two] = [randomBytes(100_000), randomBytes(megabyte)];
	const bytes = Buffer.concat([one, Buffer.alloc(20 * megabyte), two, Buffer.alloc(10 * megabyte + 77)]);
	for (const [name, chunk] of [
		['sparse-large', 3 * megabyte],
		['sparse-odd', 99_999],
	] as const) {
		const vol = await createVolume(t, name, bytes.length);
		await session.upload(vol, inChunks(bytes, chunk), {length: bytes.length, isSparse: true}, patient);
		t.true((await readFile(vol.key)).equals(bytes));
		t.true((await stat(vol.key)).blocks * 512 < 3 * megabyte);
		t.true((await collect(session.download(vol, {isSparse: true}, patient))).equals(bytes));
		t.true(
			(
				await collect(session.download(vol, {offset: 50_000, length: 25 * megabyte, isSparse: true}, patient))
			).equals(bytes.subarray(50_000, 50_000 + 25 * megabyte)),
		);
		t.true((await collect(session.download(vol, {}, patient))).equals(bytes));
	}
});

test('data that arrives before the reply belongs to the download', async t => {
	const {daemon, session} = await scripted(t);
	const download = collect(session.download(somewhere, {}, patient));
	const peer = await daemon.peers.next();
	const call = await peer.received.next();
	for (const data of ['first', 'second', '']) {
		peer.send(call, messageType.stream, messageStatus.continue, Buffer.from(data));
	}

	peer.send(call, messageType.reply, messageStatus.ok, Buffer.alloc(0));
	t.is((await peer.received.next()).status, messageStatus.ok);
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	t.is((await download).toString(), 'firstsecond');
});

test('an abort is announced by ERROR, and what comes before its confirmation is dropped', async t => {
	const stage = await scripted(t);
	const abort = new AbortController();
	const download = stage.session.download(somewhere, {}, abort.signal);
	const first = download.next();
	const {peer, call} = await openStream(stage);
	peer.send(call, messageType.stream, messageStatus.continue, Buffer.from('data'));
	t.is((await first).value?.toString(), 'data');
	abort.abort(new Error('enough'));
	const second = t.throwsAsync(download.next(), {message: 'enough'});
	const packet = await peer.received.next();
	t.deepEqual([packet.type, packet.status, packet.body.length], [3, 1, 0]);
	peer.send(call, messageType.stream, messageStatus.continue, Buffer.from('late'));
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	await second;
	await peer.closed;
});

test("an error in the middle of a download ends it with libvirt's words", async t => {
	const stage = await scripted(t);
	const download = collect(stage.session.download(somewhere, {}, patient));
	const {peer, call} = await openStream(stage);
	peer.send(call, messageType.stream, messageStatus.continue, Buffer.from('data'));
	peer.refuse(call, 38, 'cannot read from stream', messageType.stream);
	await t.throwsAsync(download, {instanceOf: LibvirtError, message: /cannot read from stream/});
});

test('a connection lost in the middle fails upload and download', async t => {
	const stage = await scripted(t);
	const upload = t.throwsAsync(stage.session.upload(somewhere, endless(), {}, patient), {
		instanceOf: LibvirtConnectionError,
		code: 'unavailable',
	});
	const up = await openStream(stage);
	await up.peer.received.next();
	up.peer.socket.destroy();
	await upload;
	const download = t.throwsAsync(collect(stage.session.download(somewhere, {}, patient)), {
		instanceOf: LibvirtConnectionError,
		code: 'unavailable',
	});
	const down = await openStream(stage);
	down.peer.socket.destroy();
	await download;
});

test('a daemon that does not read stops the source, until the limit of no progress', async t => {
	const stage = await scripted(t, {streamTimeoutMs: 500});
	let chunks = 0;
	const upload = stage.session.upload(
		somewhere,
		endless(() => chunks++),
		{},
		patient,
	);
	const {peer} = await openStream(stage);
	peer.socket.pause();
	await t.throwsAsync(upload, {instanceOf: DeadlineError, message: /take the data/});
	t.true(chunks < 20, `${chunks} chunks were read from the source`);
});

test('a reader that does not read stops the daemon, and memory stays bounded', async t => {
	const stage = await scripted(t);
	const download = stage.session.download(somewhere, {}, patient);
	const first = download.next();
	const {peer, call} = await openStream(stage);
	const chunk = Buffer.alloc(streamPayload, 'z');
	let sent = 0;
	// Sends as long as the other side takes it; at 64 MiB the claim is false.
	while (sent < 256 && (peer.send(call, messageType.stream, messageStatus.continue, chunk) || (await drains(peer)))) {
		sent++;
	}

	t.true(sent < 40, `${sent} chunks of ${streamPayload} bytes were taken`);
	await first;
	// Now it reads, and gets all that was sent.
	let received = (await first).value?.length ?? 0;
	const buffered = peer.socket.writableLength;
	t.true(buffered > 0);
	peer.send(call, messageType.stream, messageStatus.continue, Buffer.alloc(0));
	const rest = collect(download);
	await peer.received.next();
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	received += (await rest).length;
	t.is(received, (sent + 1) * streamPayload);
});

/**
 * Whether the socket empties while the event loop turns many times: the other side is in this process, so that is all
 * it needs.
 */
async function drains({socket}: Peer): Promise<boolean> {
	for (let turn = 0; turn < 200 && socket.writableNeedDrain; turn++) {
		await setImmediate();
	}

	return !socket.writableNeedDrain;
}

test('while an upload waits for its source, calls on the same connection are answered', async t => {
	const {daemon, session} = await scripted(t);
	const source = Promise.withResolvers<undefined>();
	const upload = session.upload(
		somewhere,
		(async function* () {
			await source.promise;
			yield Buffer.from('late');
		})(),
		{length: 4},
		patient,
	);
	const {peer, call} = await openStream({daemon});
	const lookups = ['1', '2', '3', '4'].map(async name =>
		session.call(procedures.storageVolLookupByPath, {path: name}, patient),
	);
	for (const _ of lookups) {
		peer.reply(await peer.received.next(), procedures.storageVolLookupByPath, {vol: somewhere});
	}

	await Promise.all(lookups);
	source.resolve(undefined);
	t.is((await peer.received.next()).body.toString(), 'late');
	t.is((await peer.received.next()).status, messageStatus.ok);
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	await upload;
});

test('after a second confirmation of a stream, a call without an answer is repeated or fails', async t => {
	const {daemon, session} = await scripted(t);
	const upload = session.upload(somewhere, inChunks(Buffer.from('x'), 1), {length: 1}, patient);
	const {peer, call} = await openStream({daemon});
	const [lookup, creation] = [
		session.call(procedures.storageVolLookupByPath, {path: 'a'}, patient),
		t.throwsAsync(
			session.call(
				procedures.storageVolCreateXml,
				{pool: {name: 'p', uuid: Buffer.alloc(16)}, xml: '<volume/>', flags: 0},
				patient,
			),
			{instanceOf: LibvirtConnectionError, message: /confirmed the end of a stream twice/},
		),
	];
	for (let packets = 0; packets < 4; packets++) {
		await peer.received.next();
	}

	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	await upload;
	t.true((await creation).mayHaveBeenExecuted);
	const next = await daemon.peers.next();
	next.reply(await next.received.next(), procedures.storageVolLookupByPath, {vol: somewhere});
	t.deepEqual((await lookup).vol.name, somewhere.name);
});

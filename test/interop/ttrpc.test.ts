/** Conversations with the reference implementation in Go, both ways. */
import {execFile, spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {promisify} from 'node:util';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError, codeOf} from '../../src/core/errors.ts';
import {connect, type CallOptions, type TtrpcClient} from '../../src/ttrpc/client.ts';
import {statusCode, TtrpcError} from '../../src/ttrpc/status.ts';
import {method, serve} from '../ttrpc/peers.ts';
import {referencePeer} from './reference-peer.ts';

const forever = new AbortController().signal;

test.before('the reference implementation builds', async t => {
	t.timeout(300_000, 'building the Go peer');
	await referencePeer();
});

/** A client of ours, connected to the reference server, and what kills that server. */
async function referenceServer(t: ExecutionContext): Promise<{client: TtrpcClient; kill: () => void}> {
	const directory = mkdtempSync(join(tmpdir(), 'caat-ttrpc-go-'));
	const path = join(directory, 'socket');
	const server = spawn(await referencePeer(), ['serve', path], {stdio: ['ignore', 'pipe', 'inherit']});
	const exited = once(server, 'exit');
	t.teardown(async () => {
		server.kill();
		await exited;
		rmSync(directory, {recursive: true});
	});
	await once(server.stdout, 'data');
	const client = await connect(path, AbortSignal.timeout(60_000), {maxMessageLength: 6 << 20});
	t.teardown(async () => client.close());
	return {client, kill: () => void server.kill()};
}

async function version(client: TtrpcClient, text: string, options: CallOptions = {}): Promise<string> {
	return ((await client.call(method('Version'), {version: text}, options, forever)) as {version: string}).version;
}

async function failure(t: ExecutionContext, call: Promise<unknown>): Promise<number> {
	return (await t.throwsAsync(call, {instanceOf: TtrpcError})).status.code;
}

test('the reference server answers our client', async t => {
	const {client} = await referenceServer(t);
	t.is(await version(client, 'hello'), 'hello');
	t.is(await version(client, ''), '');
	t.is((await version(client, 'size:4194200')).length, 4_194_200);
	const texts = Array.from({length: 200}, (_, index) => String(index));
	t.deepEqual(await Promise.all(texts.map(async text => version(client, text))), texts);
});

test("our client's metadata and deadline arrive at the reference server", async t => {
	const {client} = await referenceServer(t);
	const answer = await client.call(
		method('CreateVM'),
		{},
		{timeoutMs: 600_000, metadata: {key: ['a', 'b']}},
		forever,
	);
	t.like(answer, {agentSocketPath: 'a,b 600'});
	t.like(await client.call(method('CreateVM'), {}, {}, forever), {agentSocketPath: ' 0'});
});

test("the reference server's statuses are our client's errors", async t => {
	const {client} = await referenceServer(t);
	const error = await t.throwsAsync(client.call(method('StopVM'), {id: 'x'}, {}, forever), {
		instanceOf: TtrpcError,
		message: 'no sandbox x',
	});
	t.is(error.code, 'not-found');
	t.is(
		await failure(t, client.call({...method('Version'), path: '/hypervisor.Hypervisor/Other'}, {}, {}, forever)),
		statusCode.unimplemented,
	);
	t.is(
		await failure(t, client.call({...method('Version'), path: '/other.Service/Version'}, {}, {}, forever)),
		statusCode.unimplemented,
	);
});

test('the reference server refuses our oversized request as our server does, and the connection lives', async t => {
	const {client} = await referenceServer(t);
	t.is(await failure(t, version(client, 'y'.repeat(5 << 20))), statusCode.resourceExhausted);
	t.is(await version(client, 'still here'), 'still here');
});

test('our client ends a call at its deadline, and the connection to the reference server lives', async t => {
	const {client} = await referenceServer(t);
	t.is(
		(await t.throwsAsync(client.call(method('StartVM'), {}, {timeoutMs: 50}, forever), {instanceOf: AdaptorError}))
			.code,
		'deadline-exceeded',
	);
	t.is(await version(client, 'still here'), 'still here');
});

test("a reference server that dies fails our client's calls as unavailable", async t => {
	const {client, kill} = await referenceServer(t);
	const call = t.throwsAsync(client.call(method('StartVM'), {}, {}, forever), {instanceOf: AdaptorError});
	t.is(await version(client, 'both calls are under way'), 'both calls are under way');
	kill();
	t.is((await call).code, 'unavailable');
});

test('the reference client is answered by our server', async t => {
	const aborted = Promise.withResolvers<unknown>();
	const peer = await serve(t, {
		Version: async ({version: text}: {version: string}) => ({
			version: text.startsWith('size:') ? 'x'.repeat(Number(text.slice(5))) : text,
		}),
		CreateVM: async (_request: object, {metadata}) => ({agentSocketPath: metadata.get('key')?.join(',')}),
		async StartVM(_request: object, {signal}) {
			await once(signal, 'abort');
			aborted.resolve(signal.reason);
			return {};
		},
		async StopVM({id}: {id: string}) {
			if (id !== '') {
				throw new AdaptorError({code: 'not-found', what: `No sandbox ${id}`});
			}

			return {};
		},
	});
	const {stdout} = await promisify(execFile)(await referencePeer(), ['call', peer.path]);
	t.deepEqual(JSON.parse(stdout), {
		echo: {code: 0, value: 'hello'},
		empty: {code: 0},
		notFound: {code: 5, message: 'No sandbox unknown'},
		unknownMethod: {code: 12, message: 'Unknown service or method: /hypervisor.Hypervisor/Other'},
		unknownService: {code: 12, message: 'Unknown service or method: /other.Service/Version'},
		concurrent: {code: 0, value: '200'},
		large: {code: 0, value: String((4 << 20) - 100)},
		oversizedRequest: {code: 8, message: 'A request of 5242929 bytes exceeds the limit of 4194304'},
		oversizedResponse: {code: 8, message: 'A response of 5242890 bytes exceeds the limit of 4194304'},
		metadata: {code: 0, value: 'a,b'},
		deadline: {code: 4},
		afterwards: {code: 0, value: 'still here'},
	});
	// The reference client keeps the time, too, and is gone soon after: on a busy machine its end is noticed before our
	// own clock is looked at.
	t.true(['deadline-exceeded', 'cancelled'].includes(codeOf(await aborted.promise)));
});

/** Callers keep their connection to the front whatever becomes of daemons. Daemons are ttrpc servers on sockets. */
import {once} from 'node:events';
import {connect as connectSocket, createServer, type Socket} from 'node:net';
import {join} from 'node:path';
import test, {type ExecutionContext} from 'ava';
import {loadContract} from '../../src/api/contract.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable} from '../../src/core/lifetime.ts';
import {listen} from '../../src/core/server-socket.ts';
import type {RelayProcessEvent} from '../../src/relay-process/events.ts';
import {HypervisorFront} from '../../src/relay-process/hypervisor-front.ts';
import {RegisteredDaemons} from '../../src/relay-process/registered-daemons.ts';
import {connect, type ClientMethod, type TtrpcClient} from '../../src/ttrpc/client.ts';
import {TtrpcServer} from '../../src/ttrpc/server.ts';
import type {CallContext, Handler} from '../../src/ttrpc/service.ts';
import {toStatus, TtrpcError} from '../../src/ttrpc/status.ts';
import {directoryOf} from '../support/directory.ts';
import {recordingLog} from '../support/recording-log.ts';

const {signal} = new AbortController();
const {hypervisor} = loadContract();

interface Fixture {
	readonly directory: string;
	readonly path: string;
	readonly daemons: RegisteredDaemons;
	readonly events: RelayProcessEvent[];
	/** Resolves at the next event of the kind. */
	readonly next: (kind: RelayProcessEvent['kind']) => Promise<RelayProcessEvent>;
}

async function fixture(t: ExecutionContext, waitMs?: number): Promise<Fixture> {
	const directory = await directoryOf(t);
	const path = join(directory, 'h.sock');
	const events: RelayProcessEvent[] = [];
	const waiting = new Map<string, Array<(event: RelayProcessEvent) => void>>();
	const observer = {
		notify(event: RelayProcessEvent) {
			events.push(event);
			for (const resolve of waiting.get(event.kind)?.splice(0) ?? []) {
				resolve(event);
			}
		},
	};
	const daemons = new RegisteredDaemons(observer);
	const front = new HypervisorFront({daemons, observer, ...(waitMs === undefined ? {} : {waitMs})});
	const listener = await listen(path, socket => front.accept(socket), recordingLog(), signal);
	t.teardown(async () => {
		await listener[Symbol.asyncDispose]();
		await front[Symbol.asyncDispose]();
	});
	return {
		directory,
		path,
		daemons,
		events,
		async next(kind) {
			const {promise, resolve} = Promise.withResolvers<RelayProcessEvent>();
			waiting.set(kind, [...(waiting.get(kind) ?? []), resolve]);
			return promise;
		},
	};
}

interface Daemon extends Disposable {
	readonly socketPath: string;
	/** As SIGKILL. */
	readonly kill: () => Promise<void>;
}

let count = 0;

/** Serves on a socket of its own, and is registered. */
async function daemon(
	t: ExecutionContext,
	{directory, daemons}: Fixture,
	handlers: Readonly<Record<string, Handler>>,
): Promise<Daemon> {
	const socketPath = join(directory, `d${count++}.sock`);
	const server = new TtrpcServer({toStatus});
	server.register({definition: hypervisor, handlers});
	const sockets = new Set<Socket>();
	const listener = createServer(socket => {
		sockets.add(socket);
		server.serve(socket);
	}).listen(socketPath);
	await once(listener, 'listening');
	const registration = daemons.register({socketPath});
	const kill = async (): Promise<void> => {
		listener.close();
		for (const socket of sockets) {
			socket.destroy();
		}

		registration[Symbol.dispose]();
	};
	t.teardown(kill);
	return {socketPath, kill, [Symbol.dispose]: () => registration[Symbol.dispose]()};
}

const method = (name: string): ClientMethod<object, object> =>
	hypervisor[name] as unknown as ClientMethod<object, object>;
const call = async (client: TtrpcClient, name: string, timeoutMs?: number): Promise<object> =>
	client.call(method(name), {id: 'a'}, timeoutMs === undefined ? {} : {timeoutMs}, signal);
const forever = async (_: never, {signal: limit}: CallContext): Promise<never> =>
	abortable(new Promise<never>(() => undefined), limit);

test('the connection of a caller survives the end of its daemon: each call goes to the current daemon', async t => {
	const front = await fixture(t);
	await using caller = await connect(front.path, signal);
	for (const version of ['1', '2', '3']) {
		const {kill} = await daemon(t, front, {Version: async () => ({version})});
		t.deepEqual(await call(caller, 'Version'), {version});
		await kill();
	}
});

test('calls that come while there is no daemon are answered by the next one', async t => {
	const front = await fixture(t);
	await using caller = await connect(front.path, signal);
	const waits = Promise.all([front.next('call-waits'), front.next('call-waits')]);
	const calls = Promise.all([call(caller, 'StartVM'), call(caller, 'StopVM')]);
	await waits;
	const seen: string[] = [];
	await daemon(t, front, {
		async StartVM() {
			seen.push('StartVM');
			return {};
		},
		async StopVM() {
			seen.push('StopVM');
			return {};
		},
	});
	await calls;
	t.deepEqual(seen, ['StartVM', 'StopVM']);
});

test('without a daemon in time a call is UNAVAILABLE and says what to do; its own deadline counts too', async t => {
	const front = await fixture(t, 50);
	await using caller = await connect(front.path, signal);
	await t.throwsAsync(call(caller, 'StopVM'), {code: 'unavailable', message: /No daemon has registered.*osc-caa-ds/});
	await t.throwsAsync(call(caller, 'StopVM', 10), {code: 'deadline-exceeded'});
	t.true(front.events.some(({kind}) => kind === 'call-lost'));
});

for (const name of ['StopVM', 'Version']) {
	test(`${name} is repeated if its daemon ends during the call`, async t => {
		const front = await fixture(t);
		await using caller = await connect(front.path, signal);
		const begun = Promise.withResolvers<undefined>();
		const first = await daemon(t, front, {
			[name]: async (request: never, context: CallContext) => {
				begun.resolve(undefined);
				return forever(request, context);
			},
		});
		const answer = call(caller, name);
		await begun.promise;
		await first.kill();
		await daemon(t, front, {[name]: async () => ({version: '2'})});
		await t.notThrowsAsync(answer);
		t.true(front.events.some(({kind}) => kind === 'call-repeated'));
	});
}

for (const name of ['CreateVM', 'StartVM']) {
	test(`${name} is UNAVAILABLE if its daemon ends during the call, and is not repeated`, async t => {
		const front = await fixture(t);
		await using caller = await connect(front.path, signal);
		const begun = Promise.withResolvers<undefined>();
		await daemon(t, front, {[name]: async () => t.fail('made again')});
		const latest = await daemon(t, front, {
			[name]: async (request: never, context: CallContext) => {
				begun.resolve(undefined);
				return forever(request, context);
			},
		});
		const answer = t.throwsAsync(call(caller, name), {
			code: 'unavailable',
			message: /ended during the call.*kubelet/,
		});
		await begun.promise;
		await latest.kill();
		await answer;
	});
}

test('a daemon that is registered and accepts no connection is UNAVAILABLE within the time that calls wait', async t => {
	const front = await fixture(t, 100);
	front.daemons.register({socketPath: join(front.directory, 'gone.sock')});
	const client = await connect(front.path, signal);
	const error = await t.throwsAsync(call(client, 'StopVM'), {instanceOf: TtrpcError});
	t.is(error.code, 'unavailable');
	t.regex(error.message, /accepts no connections.*osc-caa-ds/v);
	await client.close();
});

test('the latest registered daemon gets the calls; when it ends, the previous one gets them again', async t => {
	const front = await fixture(t);
	await using caller = await connect(front.path, signal);
	await daemon(t, front, {Version: async () => ({version: 'old'})});
	const young = await daemon(t, front, {Version: async () => ({version: 'young'})});
	t.deepEqual(await call(caller, 'Version'), {version: 'young'});
	await young.kill();
	t.deepEqual(await call(caller, 'Version'), {version: 'old'});
	t.like(front.events.at(-1), {kind: 'daemon-gone', hasOther: true});
});

test('a call that is in progress when its daemon unregisters is completed by that daemon', async t => {
	const front = await fixture(t);
	await using caller = await connect(front.path, signal);
	const begun = Promise.withResolvers<undefined>();
	const finish = Promise.withResolvers<undefined>();
	const first = await daemon(t, front, {
		async StartVM() {
			begun.resolve(undefined);
			await finish.promise;
			return {};
		},
	});
	const start = call(caller, 'StartVM');
	await begun.promise;
	first[Symbol.dispose]();
	const waits = front.next('call-waits');
	const version = call(caller, 'Version');
	await waits;
	finish.resolve(undefined);
	await t.notThrowsAsync(start);
	await daemon(t, front, {Version: async () => ({version: 'next'})});
	t.deepEqual(await version, {version: 'next'});
});

test('a caller that hangs up, and a deadline, end the call at the daemon', async t => {
	const front = await fixture(t);
	const ended: unknown[] = [];
	const over = [Promise.withResolvers<undefined>(), Promise.withResolvers<undefined>()];
	const timeouts: Array<number | undefined> = [];
	const begun = Promise.withResolvers<undefined>();
	await daemon(t, front, {
		async StartVM(request: never, context: CallContext) {
			timeouts.push(context.timeoutMs);
			begun.resolve(undefined);
			try {
				return await forever(request, context);
			} finally {
				ended.push(context.signal.reason);
				over[ended.length - 1]?.resolve(undefined);
			}
		},
	});
	{
		const caller = await connect(front.path, signal);
		call(caller, 'StartVM').catch(() => undefined);
		await begun.promise;
		await caller.close();
		await over[0]?.promise;
	}

	await using caller = await connect(front.path, signal);
	await t.throwsAsync(call(caller, 'StartVM', 100), {code: 'deadline-exceeded'});
	await over[1]?.promise;
	t.is(timeouts[0], undefined);
	t.true(Number(timeouts[1]) <= 100);
});

test('an error of the daemon reaches the caller as it is, unknown methods too', async t => {
	const front = await fixture(t);
	await using caller = await connect(front.path, signal);
	await daemon(t, front, {
		async StartVM() {
			throw new AdaptorError({code: 'failed-precondition', what: 'no space', remedy: 'Make some.'});
		},
	});
	const error = await t.throwsAsync(call(caller, 'StartVM'), {instanceOf: TtrpcError});
	t.like(error, {code: 'failed-precondition', message: 'no space. Make some.'});
	await t.throwsAsync(caller.call({...method('Version'), path: '/some.Service/New'}, {}, {}, signal), {
		code: 'unimplemented',
		message: /some.Service/,
	});
});

test('HTTP/2 is passed on as bytes, once there is a daemon', async t => {
	const front = await fixture(t);
	const socket = connectSocket(front.path);
	socket.write('PRI * HTTP/2.0');
	const socketPath = join(front.directory, 'grpc.sock');
	const listener = createServer(peer => {
		peer.once('data', (bytes: Buffer) => peer.end(`got ${bytes.toString()}`));
	}).listen(socketPath);
	await once(listener, 'listening');
	t.teardown(() => listener.close());
	front.daemons.register({socketPath});
	const [answer] = (await once(socket, 'data')) as [Buffer];
	t.is(answer.toString(), 'got PRI * HTTP/2.0');
	await once(socket, 'close');
});

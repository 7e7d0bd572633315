/** Conversations with a scripted daemon: order, limits, loss, silence, reconnection. */
import {once} from 'node:events';
import test, {type ExecutionContext} from 'ava';
import {codeOf} from '../../src/core/errors.ts';
import {abortable, DeadlineError} from '../../src/core/lifetime.ts';
import {LibvirtConnectionError, LibvirtError} from '../../src/libvirt/wire/errors.ts';
import type {LifecycleEvent} from '../../src/libvirt/wire/events.ts';
import {messageLimit, messageStatus, messageType, type Packet} from '../../src/libvirt/wire/packet.ts';
import type {Pipe} from '../../src/libvirt/transport/pipe.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import type {CallOptions, LibvirtSessionOptions, SessionState} from '../../src/libvirt/session-options.ts';
import type {SessionEvent} from '../../src/libvirt/session-events.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {decode} from '../../src/libvirt/wire/xdr.ts';
import {
	domain,
	Queue,
	startScriptedDaemon,
	type Peer,
	type ScriptedDaemon,
	type ScriptedDaemonOptions,
} from './scripted-daemon.ts';

const {domainLookupByName, domainGetXmlDesc, connectOpen, connectGetCapabilities} = procedures;
const patient = new AbortController().signal;

interface Stage {
	readonly daemon: ScriptedDaemon;
	readonly session: LibvirtSession;
	readonly peer: Peer;
}

async function startSession(
	t: ExecutionContext,
	daemonOptions: ScriptedDaemonOptions = {},
	options: Partial<LibvirtSessionOptions> = {},
): Promise<Omit<Stage, 'peer'>> {
	const daemon = await startScriptedDaemon(daemonOptions);
	const session = new LibvirtSession({
		openPipe: daemon.openPipe,
		uri: 'test:///default',
		reconnectMs: {first: 5, longest: 20},
		...options,
	});
	t.teardown(async () => {
		await session[Symbol.asyncDispose]();
		await daemon[Symbol.asyncDispose]();
	});
	return {daemon, session};
}

async function connected(
	t: ExecutionContext,
	daemonOptions: ScriptedDaemonOptions = {},
	options: Partial<LibvirtSessionOptions> = {},
): Promise<Stage> {
	const {daemon, session} = await startSession(t, daemonOptions, options);
	await session.connect(patient);
	return {daemon, session, peer: await daemon.peers.next()};
}

/** Not made again when its answer is lost, unless told. */
async function lookUp(
	session: LibvirtSession,
	name: string,
	signal = patient,
	options: CallOptions = {},
): Promise<number> {
	const {dom} = await session.call(domainLookupByName, {name}, signal, {timeoutMs: 60_000, retry: false, ...options});
	return dom.id;
}

function nameIn(call: Packet): string {
	return decode(domainLookupByName.args, call.body).name;
}

function answer(peer: Peer, call: Packet): void {
	peer.reply(call, domainLookupByName, {dom: {...domain, id: Number(nameIn(call))}});
}

async function stateOf(session: LibvirtSession, name: SessionState['name']): Promise<SessionState> {
	if (session.state.name === name) {
		return session.state;
	}

	const {promise, resolve} = Promise.withResolvers<SessionState>();
	using _listener = session.onState(state => {
		if (state.name === name) {
			resolve(state);
		}
	});
	return await promise;
}

async function nextState(session: LibvirtSession): Promise<void> {
	const {promise, resolve} = Promise.withResolvers<undefined>();
	using _listener = session.onState(() => resolve(undefined));
	await promise;
}

test('the first call connects, and the server is known afterwards', async t => {
	const {session} = await startSession(t);
	t.is(session.state.name, 'idle');
	const server = await session.connect(patient);
	t.deepEqual(server, {driver: 'SCRIPT', libvirtVersion: '9.1.2', hostname: 'scripted', transport: 'scripted'});
	t.is(session.state.name, 'connected');
});

test('answers that come out of order reach their callers', async t => {
	const {session, peer} = await connected(t);
	const calls = [lookUp(session, '1'), lookUp(session, '2'), lookUp(session, '3')];
	const packets = [await peer.received.next(), await peer.received.next(), await peer.received.next()];
	for (const packet of packets.toReversed()) {
		answer(peer, packet);
	}

	t.deepEqual(await Promise.all(calls), [1, 2, 3]);
});

test('the fifth call waits for a free slot, and the sixth waits behind it', async t => {
	const {session, peer} = await connected(t);
	const calls = ['1', '2', '3', '4', '5', '6'].map(name => lookUp(session, name));
	const first = await Promise.all([1, 2, 3, 4].map(async () => peer.received.next()));
	// The daemon's own ping is answered, and in order: had a fifth call been sent, it would be here before the pong.
	peer.ping();
	await peer.keepalive.next();
	t.is(peer.received.length, 0);
	answer(peer, first[2] ?? t.fail());
	const fifth = await peer.received.next();
	t.is(nameIn(fifth), '5');
	answer(peer, fifth);
	const sixth = await peer.received.next();
	t.is(nameIn(sixth), '6');
	for (const packet of [first[0], first[1], first[3], sixth]) {
		answer(peer, packet ?? t.fail());
	}

	t.deepEqual(await Promise.all(calls), [1, 2, 3, 4, 5, 6]);
});

test('a call that is cancelled in the queue is never sent', async t => {
	const {session, peer} = await connected(t);
	const calls = ['1', '2', '3', '4'].map(name => lookUp(session, name));
	const abort = new AbortController();
	const cancelled = lookUp(session, '5', abort.signal);
	const last = lookUp(session, '6');
	const packets = await Promise.all([1, 2, 3, 4].map(async () => peer.received.next()));
	abort.abort(new Error('changed my mind'));
	await t.throwsAsync(cancelled, {message: 'changed my mind'});
	answer(peer, packets[0] ?? t.fail());
	const next = await peer.received.next();
	t.is(nameIn(next), '6');
	for (const packet of [...packets.slice(1), next]) {
		answer(peer, packet);
	}

	await Promise.all([...calls, last]);
});

test('a call that its caller gave up on keeps its slot until the answer comes', async t => {
	const {session, peer} = await connected(t);
	const calls = ['1', '2', '3'].map(name => lookUp(session, name));
	const abort = new AbortController();
	const given = lookUp(session, '4', abort.signal);
	const packets = await Promise.all([1, 2, 3, 4].map(async () => peer.received.next()));
	abort.abort(new Error('enough'));
	await t.throwsAsync(given, {message: 'enough'});
	const waiting = lookUp(session, '5');
	peer.ping();
	await peer.keepalive.next();
	t.is(peer.received.length, 0);
	answer(peer, packets[3] ?? t.fail());
	const fifth = await peer.received.next();
	for (const packet of [...packets.slice(0, 3), fifth]) {
		answer(peer, packet);
	}

	t.deepEqual(await Promise.all([...calls, waiting]), [1, 2, 3, 5]);
});

test('when all four slots are held by calls that nobody waits for, the connection is replaced', async t => {
	const {daemon, session} = await connected(t, {keepalive: 0}, {silenceTimeoutMs: 200});
	await Promise.all(
		['1', '2', '3', '4'].map(async name =>
			t.throwsAsync(lookUp(session, name, patient, {timeoutMs: 20}), {instanceOf: DeadlineError}),
		),
	);
	const call = lookUp(session, '5');
	const fresh = await daemon.peers.next();
	const packet = await fresh.received.next();
	t.is(nameIn(packet), '5');
	answer(fresh, packet);
	t.is(await call, 5);
});

test('each call is told to the observer once, with its procedure and its error, also when it was repeated', async t => {
	const events: SessionEvent[] = [];
	const {session, daemon, peer} = await connected(t, {}, {observer: {notify: event => events.push(event)}});
	const answered = lookUp(session, '5');
	answer(peer, await peer.received.next());
	await answered;
	const failed = t.throwsAsync(lookUp(session, '6', patient, {timeoutMs: 1}), {instanceOf: DeadlineError});
	await failed;
	await peer.received.next();
	const repeated = session.call(connectGetCapabilities, undefined, patient);
	await peer.received.next();
	peer.socket.destroy();
	const next = await daemon.peers.next();
	next.reply(await next.received.next(), connectGetCapabilities, {capabilities: ''});
	await repeated;
	const calls = events.filter(event => event.kind === 'libvirt-call');
	t.deepEqual(
		calls.map(({procedure, error}) => [procedure, error === undefined ? 'ok' : codeOf(error)]),
		[
			[domainLookupByName.name, 'ok'],
			[domainLookupByName.name, 'deadline-exceeded'],
			[connectGetCapabilities.name, 'ok'],
		],
	);
	t.true(calls.every(({durationMs}) => durationMs >= 0));
});

test('a deadline names the call that was awaited', async t => {
	const {session} = await connected(t);
	await t.throwsAsync(lookUp(session, '1', patient, {timeoutMs: 20}), {
		instanceOf: DeadlineError,
		message: /libvirt to answer domainLookupByName/,
	});
});

test('a call that must be completed observes its signal only until it is sent', async t => {
	const {session, peer} = await connected(t);
	const abort = new AbortController();
	const sent = lookUp(session, '1', abort.signal, {seeThrough: true});
	const others = ['2', '3', '4'].map(name => lookUp(session, name));
	const unsent = t.throwsAsync(lookUp(session, '5', abort.signal, {seeThrough: true}), {message: 'stopped'});
	const packets = await Promise.all([1, 2, 3, 4].map(async () => peer.received.next()));
	abort.abort(new Error('stopped'));
	await unsent;
	for (const packet of packets) {
		answer(peer, packet);
	}

	t.is(await sent, 1);
	await Promise.all(others);
	t.is(peer.received.length, 0);
});

test('events that come before the answer are delivered first', async t => {
	const {session, peer} = await connected(t);
	const order: string[] = [];
	using _listener = session.onLifecycle(event => {
		order.push(`${event.name} ${event.stopped ?? ''}`);
	});
	const call = lookUp(session, '1').then(() => order.push('answer'));
	const packet = await peer.received.next();
	peer.lifecycle(2, 0);
	peer.lifecycle(5, 5);
	answer(peer, packet);
	await call;
	t.deepEqual(order, ['started ', 'stopped failed', 'answer']);
});

test('a listener that throws harms neither the other listeners nor the connection', async t => {
	const {session, peer} = await connected(t);
	using _bad = session.onLifecycle(() => {
		throw new Error('listener');
	});
	const seen = new Queue<LifecycleEvent>();
	using _good = session.onLifecycle(event => seen.push(event));
	peer.lifecycle(0, 0);
	t.is((await seen.next()).name, 'defined');
	t.is(session.state.name, 'connected');
});

test('a lost connection fails calls that may have been executed, and unsent calls use the next one', async t => {
	const {daemon, session, peer} = await connected(t);
	const calls = ['1', '2', '3', '4'].map(name => lookUp(session, name));
	const unsent = lookUp(session, '5');
	const errors = Promise.all(
		calls.map(async call => t.throwsAsync(call, {instanceOf: LibvirtConnectionError, code: 'unavailable'})),
	);
	await Promise.all([1, 2, 3, 4].map(async () => peer.received.next()));
	peer.socket.destroy();
	t.deepEqual(
		(await errors).map(error => error.mayHaveBeenExecuted),
		[true, true, true, true],
	);
	t.regex((await errors)[0]?.message ?? '', /domainLookupByName.*may have executed/);
	const next = await daemon.peers.next();
	answer(next, await next.received.next());
	t.is(await unsent, 5);
});

test('a read-only call is sent up to three times if its answer is lost; a change is not repeated', async t => {
	const {daemon, session, peer: first} = await connected(t);
	const looking = lookUp(session, '1', patient, {retry: true});
	const changing = t.throwsAsync(
		session.call(procedures.domainDefineXmlFlags, {xml: '<domain/>', flags: 0}, patient),
		{instanceOf: LibvirtConnectionError},
	);
	await Promise.all([first.received.next(), first.received.next()]);
	first.socket.destroy();
	t.like(await changing, {mayHaveBeenExecuted: true});
	const second = await daemon.peers.next();
	answer(second, await second.received.next());
	t.is(await looking, 1);
	t.is(second.received.length, 0);
	const crashing = t.throwsAsync(session.call(domainLookupByName, {name: '2'}, patient), {
		instanceOf: LibvirtConnectionError,
	});
	for (let peer = second, times = 1; times <= 3; times++) {
		await peer.received.next();
		peer.socket.destroy();
		peer = await daemon.peers.next();
	}

	t.like(await crashing, {mayHaveBeenExecuted: true});
});

test('after a loss the session reconnects by itself and registers for events again', async t => {
	const {daemon, session, peer} = await connected(t);
	const events = new Queue<LifecycleEvent>();
	using _events = session.onLifecycle(event => events.push(event));
	const states: string[] = [];
	using _states = session.onState(state => states.push(state.name));
	await peer.registrations.next();
	await daemon.down();
	await stateOf(session, 'connecting');
	await daemon.up();
	const again = await daemon.peers.next();
	await again.registrations.next();
	await stateOf(session, 'connected');
	t.deepEqual(states, ['connecting', 'connected']);
	again.lifecycle(8, 0);
	t.is((await events.next()).name, 'crashed');
});

test('calls made while the daemon is away are carried out when it is back', async t => {
	const {daemon, session} = await connected(t);
	await daemon.down();
	await stateOf(session, 'connecting');
	const call = lookUp(session, '1');
	await attemptsToFail(session, 3);
	await daemon.up();
	const again = await daemon.peers.next();
	answer(again, await again.received.next());
	t.is(await call, 1);
});

test('calls during an outage fail at their deadline with the cause, or with their signal', async t => {
	const {daemon, session} = await connected(t);
	await daemon.down();
	await stateOf(session, 'connecting');
	await attemptsToFail(session, 1);
	const error = await t.throwsAsync(lookUp(session, '1', patient, {timeoutMs: 200}), {
		instanceOf: LibvirtConnectionError,
		code: 'unavailable',
	});
	t.false(error.mayHaveBeenExecuted);
	t.regex(error.message, /ENOENT|ECONNREFUSED/);
	const abort = new AbortController();
	const call = lookUp(session, '2', abort.signal);
	await attemptsToFail(session, 2);
	abort.abort(new Error('enough'));
	await t.throwsAsync(call, {message: 'enough'});
});

/** `connect` fails with the attempt that is under way. */
async function attemptsToFail(session: LibvirtSession, count: number): Promise<void> {
	for (let failed = 0; failed < count; failed++) {
		await session.connect(patient).catch(() => undefined);
	}
}

test('a first connection that fails says why, and a later call tries again', async t => {
	const {daemon, session} = await startSession(t);
	await daemon.down();
	await t.throwsAsync(session.connect(patient), {instanceOf: LibvirtConnectionError, message: /ENOENT|ECONNREFUSED/});
	await daemon.up();
	// The attempt that runs now may have begun before the daemon was up.
	await session.connect(patient).catch(async () => session.connect(patient));
	t.is(session.state.name, 'connected');
});

test('a silent connection is probed once, then replaced by a new one, which gets its calls', async t => {
	const {daemon, session, peer} = await connected(t, {}, {silenceTimeoutMs: 2000});
	const states: string[] = [];
	using _states = session.onState(({name}) => states.push(name));
	const call = lookUp(session, '1', patient, {retry: true});
	t.is((await peer.keepalive.next()).procedure, 1);
	const next = await daemon.peers.next();
	answer(next, await next.received.next());
	t.is(await call, 1);
	await peer.closed;
	t.is(peer.keepalive.length, 0);
	t.deepEqual(states, ['connected']);
	next.lifecycle(0, 0);
});

/** Connected; from then on every attempt to connect says so and hangs until it is given up. */
async function cutOff(
	t: ExecutionContext,
	options: Partial<LibvirtSessionOptions>,
): Promise<Stage & {readonly attempts: Queue<AbortSignal>}> {
	const daemon = await startScriptedDaemon();
	const attempts = new Queue<AbortSignal>();
	let connections = 0;
	const session = new LibvirtSession({
		uri: 'test:///default',
		reconnectMs: {first: 5, longest: 20},
		...options,
		openPipe: async signal => {
			if (connections++ === 0) {
				return daemon.openPipe(signal);
			}

			attempts.push(signal);
			return abortable(Promise.withResolvers<never>().promise, signal);
		},
	});
	t.teardown(async () => {
		await session[Symbol.asyncDispose]();
		await daemon[Symbol.asyncDispose]();
	});
	await session.connect(patient);
	return {daemon, session, peer: await daemon.peers.next(), attempts};
}

test('a silent connection that speaks again before a new one gets through is kept', async t => {
	const {session, peer, attempts} = await cutOff(t, {silenceTimeoutMs: 2000});
	const states: string[] = [];
	using _states = session.onState(({name}) => states.push(name));
	const call = lookUp(session, '1');
	const attempt = await attempts.next();
	const ended = once(attempt, 'abort');
	answer(peer, await peer.received.next());
	t.is(await call, 1);
	await ended;
	t.deepEqual(states, []);
});

test('a silent connection is given up at the limit when no new one gets through', async t => {
	const {session, attempts} = await cutOff(t, {silenceTimeoutMs: 400});
	await t.throwsAsync(lookUp(session, '1'), {
		instanceOf: LibvirtConnectionError,
		message: /nothing arrived from the daemon for 400 ms/,
	});
	t.true(attempts.length > 0);
	t.is(session.state.name, 'connecting');
});

test('when a silent connection with a stream is replaced, it stays open until the stream ends', async t => {
	const {daemon, session, peer} = await connected(t, {}, {silenceTimeoutMs: 2000});
	const source = Promise.withResolvers<undefined>();
	const upload = session.upload(
		{pool: 'p', name: 'v', key: ''},
		(async function* () {
			await source.promise;
			yield Buffer.from('late');
		})(),
		{length: 4},
		patient,
	);
	const call = await peer.received.next();
	peer.send(call, messageType.reply, messageStatus.ok, Buffer.alloc(0));
	await nextState(session);
	const looking = lookUp(session, '1');
	const next = await daemon.peers.next();
	answer(next, await next.received.next());
	t.is(await looking, 1);
	source.resolve(undefined);
	t.is((await peer.received.next()).body.toString(), 'late');
	t.is((await peer.received.next()).status, messageStatus.ok);
	peer.send(call, messageType.stream, messageStatus.ok, Buffer.alloc(0));
	await upload;
	await peer.closed;
});

test('a daemon that pings is alive, and gets its pongs', async t => {
	const {session, peer} = await connected(t, {}, {silenceTimeoutMs: 4000});
	const states: string[] = [];
	using _states = session.onState(({name}) => states.push(name));
	const beat = setInterval(() => peer.ping(), 20);
	t.teardown(() => clearInterval(beat));
	// For three times as long as makes a silent one suspect.
	for (let pongs = 0; pongs < 60;) {
		pongs += (await peer.keepalive.next()).procedure === 2 ? 1 : 0;
	}

	t.deepEqual(states, []);
});

test('a daemon without keepalive may be silent', async t => {
	const {session, peer} = await connected(t, {keepalive: 0}, {silenceTimeoutMs: 20});
	await t.throwsAsync(lookUp(session, '1', patient, {timeoutMs: 150}), {instanceOf: DeadlineError});
	t.is(peer.keepalive.length, 0);
	t.is(session.state.name, 'connected');
});

for (const [what, bytes] of [
	['a length over the limit', Buffer.from([(messageLimit >>> 24) + 1, 0, 0, 0])],
	['text instead of packets', Buffer.from('Welcome to this host!\n')],
	['an unknown program', Buffer.from('0000001c200080870000000100000001000000010000000100000000', 'hex')],
	['a call from the daemon', Buffer.from('0000001c200080860000000100000001000000000000000100000000', 'hex')],
] as const) {
	test(`${what} ends the connection with a typed error`, async t => {
		const {session, peer} = await connected(t);
		const call = lookUp(session, '1');
		await peer.received.next();
		peer.socket.write(bytes);
		const error = await t.throwsAsync(call, {instanceOf: LibvirtConnectionError, code: 'unavailable'});
		t.like(error.cause, {name: 'PacketError', code: 'data-loss'});
	});
}

test('an answer that cannot be read fails its call only', async t => {
	const {session, peer} = await connected(t);
	const call = lookUp(session, '1');
	const packet = await peer.received.next();
	peer.send(packet, messageType.reply, messageStatus.ok, Buffer.from('ffffffff', 'hex'));
	await t.throwsAsync(call, {name: 'XdrError'});
	t.is(session.state.name, 'connected');
});

test('an answer without a call is ignored', async t => {
	const {session, peer} = await connected(t);
	const call = lookUp(session, '1');
	const packet = await peer.received.next();
	answer(peer, {...packet, serial: packet.serial + 100});
	answer(peer, packet);
	t.is(await call, 1);
});

test("a refusal carries libvirt's code and ours, and the connection goes on", async t => {
	const {session, peer} = await connected(t);
	const call = session.call(domainGetXmlDesc, {dom: domain, flags: 0}, patient);
	peer.refuse(await peer.received.next(), 55, 'domain is not running');
	const error = await t.throwsAsync(call, {instanceOf: LibvirtError, code: 'failed-precondition'});
	t.like(error, {libvirtCode: 55, libvirtMessage: 'domain is not running', procedure: 'domainGetXmlDesc'});
	t.is(session.state.name, 'connected');
});

test('arguments that cannot be encoded harm nothing', async t => {
	const {session} = await connected(t);
	await t.throwsAsync(lookUp(session, 'a\0b'), {name: 'XdrError'});
	t.is(session.state.name, 'connected');
});

test('polkit is asked only when it is listed', async t => {
	const {session, peer} = await startSession(t, {authTypes: [2], unanswered: [procedures.authPolkit.number]}).then(
		async ({daemon, session}) => {
			void session.connect(patient).catch(() => undefined);
			return {session, peer: await daemon.peers.next()};
		},
	);
	const call = await peer.received.next();
	t.is(call.procedure, procedures.authPolkit.number);
	peer.reply(call, procedures.authPolkit, {complete: 1});
	await stateOf(session, 'connected');
	const other = await connected(t, {authTypes: [0], unanswered: [procedures.authPolkit.number]});
	t.is(other.peer.received.length, 0);
});

test('a daemon that requires SASL causes an error with a remedy, and the next call tries once more', async t => {
	const {daemon, session} = await startSession(t, {authTypes: [1]});
	const error = await t.throwsAsync(session.connect(patient), {
		instanceOf: LibvirtConnectionError,
		code: 'unauthenticated',
	});
	t.regex(error.message, /SASL.*auth_unix_rw/);
	await daemon.peers.next();
	await t.throwsAsync(session.connect(patient), {code: 'unauthenticated'});
	await daemon.peers.next();
	t.is(daemon.peers.length, 0);
});

test('a driver that does not open says why', async t => {
	const {daemon, session} = await startSession(t, {unanswered: [connectOpen.number]});
	const connecting = session.connect(patient);
	const peer = await daemon.peers.next();
	peer.refuse(await peer.received.next(), 5, 'no connection driver available for foo:///x');
	await t.throwsAsync(connecting, {instanceOf: LibvirtConnectionError, message: /no connection driver/});
});

const handshake = [
	procedures.authList,
	connectOpen,
	procedures.connectSupportsFeature,
	procedures.connectDomainEventCallbackRegisterAny,
	procedures.connectGetType,
	procedures.connectGetLibVersion,
	procedures.connectGetHostname,
];
for (const {name, number} of handshake) {
	test(`a connection that is lost during ${name} fails the attempt, and the next one works`, async t => {
		const {daemon, session} = await startSession(t, {unanswered: [number]});
		const connecting = session.connect(patient);
		const peer = await daemon.peers.next();
		await peer.received.next();
		const failed = t.throwsAsync(connecting, {instanceOf: LibvirtConnectionError, code: 'unavailable'});
		peer.socket.destroy();
		await failed;
		const again = await daemon.peers.next();
		const packet = await again.received.next();
		const answers: Readonly<Record<number, Buffer>> = {
			[procedures.authList.number]: Buffer.alloc(4),
			[connectOpen.number]: Buffer.alloc(0),
			[procedures.connectGetLibVersion.number]: Buffer.alloc(8),
		};
		again.send(packet, messageType.reply, messageStatus.ok, answers[number] ?? Buffer.alloc(4));
		t.is((await stateOf(session, 'connected')).name, 'connected');
	});
}

test('a connection that is lost directly after the last answer of the handshake is not used', async t => {
	const {daemon, session} = await startSession(t, {unanswered: [procedures.connectGetHostname.number]});
	const connecting = session.connect(patient);
	const peer = await daemon.peers.next();
	const packet = await peer.received.next();
	peer.socket.cork();
	peer.reply(packet, procedures.connectGetHostname, {hostname: 'h'});
	peer.socket.write(Buffer.alloc(28));
	peer.socket.uncork();
	await t.throwsAsync(connecting, {instanceOf: LibvirtConnectionError, message: /violates the libvirt protocol/});
	t.is(session.state.name, 'connecting');
});

test('a handshake that hangs ends with the time limit of an attempt', async t => {
	const {session} = await startSession(t, {unanswered: [connectOpen.number]}, {connectTimeoutMs: 50});
	await t.throwsAsync(session.connect(patient), {
		instanceOf: LibvirtConnectionError,
		message: /Timed out after 50 ms/,
	});
});

test('disposing lets calls under way finish, refuses new ones, and closes the connection properly', async t => {
	const {session, peer} = await connected(
		t,
		{unanswered: [procedures.connectClose.number]},
		{drainTimeoutMs: 60_000},
	);
	const call = lookUp(session, '1');
	const packet = await peer.received.next();
	const disposed = session[Symbol.asyncDispose]();
	await t.throwsAsync(lookUp(session, '2'), {instanceOf: LibvirtConnectionError, message: /closed/});
	answer(peer, packet);
	t.is(await call, 1);
	const goodbye = await peer.received.next();
	t.is(goodbye.procedure, procedures.connectClose.number);
	peer.reply(goodbye, procedures.connectClose, undefined);
	await disposed;
	await session[Symbol.asyncDispose]();
	await peer.closed;
	t.is(session.state.name, 'closed');
});

test('disposing while connecting fails those who wait', async t => {
	const {daemon, session} = await startSession(t, {unanswered: [connectOpen.number]});
	const connecting = session.connect(patient);
	const peer = await daemon.peers.next();
	await peer.received.next();
	const failed = t.throwsAsync(connecting, {instanceOf: LibvirtConnectionError, message: /closed/});
	await session[Symbol.asyncDispose]();
	await failed;
	await peer.closed;
});

test('disposing at the moment when the connection becomes ready leaves no connection', async t => {
	const daemon = await startScriptedDaemon({unanswered: [procedures.connectGetHostname.number]});
	const pipes = new Queue<Pipe>();
	const session = new LibvirtSession({
		uri: 'test:///default',
		openPipe: async signal => {
			const pipe = await daemon.openPipe(signal);
			pipes.push(pipe);
			return pipe;
		},
	});
	const failed = t.throwsAsync(session.connect(patient), {instanceOf: LibvirtConnectionError, message: /closed/});
	const [peer, pipe] = [await daemon.peers.next(), await pipes.next()];
	const call = await peer.received.next();
	let disposed: Promise<void> | undefined;
	// After the session has read the last answer, before it could do anything about it.
	pipe.duplex.on('data', () => {
		disposed ??= session[Symbol.asyncDispose]();
	});
	peer.reply(call, procedures.connectGetHostname, {hostname: 'h'});
	await failed;
	await disposed;
	await peer.closed;
	t.is(session.state.name, 'closed');
	await daemon[Symbol.asyncDispose]();
});

test('a long text in small pieces arrives', async t => {
	const {session, peer} = await connected(t);
	const call = session.call(connectGetCapabilities, undefined, patient);
	const packet = await peer.received.next();
	const capabilities = '<x/>'.repeat(500_000);
	peer.reply(packet, connectGetCapabilities, {capabilities});
	t.is((await call).capabilities, capabilities);
});

// Consoles, by a scripted daemon: libvirt's test driver has none. The end-to-end tests read those of real guests.
import test, {type ExecutionContext} from 'ava';
import {LibvirtError} from '../../src/libvirt/wire/errors.ts';
import {messageStatus, messageType, type Packet} from '../../src/libvirt/wire/packet.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {decode} from '../../src/libvirt/wire/xdr.ts';
import {domain, startScriptedDaemon, type Peer} from './scripted-daemon.ts';

const never = new AbortController().signal;
const empty = Buffer.alloc(0);

async function connected(t: ExecutionContext): Promise<{session: LibvirtSession; peer: Peer}> {
	const daemon = await startScriptedDaemon();
	t.teardown(async () => daemon[Symbol.asyncDispose]());
	const session = new LibvirtSession({uri: 'script:///', openPipe: daemon.openPipe});
	t.teardown(async () => session[Symbol.asyncDispose]());
	await session.connect(never);
	return {session, peer: await daemon.peers.next()};
}

async function opened(peer: Peer): Promise<Packet> {
	const call = await peer.received.next();
	peer.send(call, messageType.reply, messageStatus.ok, empty);
	return call;
}

test('a console is read while the guest prints, in parallel to calls, and released when the reader stops', async t => {
	const {session, peer} = await connected(t);
	const output = session.console(domain, never);
	const first = output.next();
	const call = await opened(peer);
	t.is(call.procedure, procedures.domainOpenConsole.number);
	t.deepEqual(decode(procedures.domainOpenConsole.args, call.body), {dom: domain, devName: null, flags: 0});
	peer.send(call, messageType.stream, messageStatus.continue, Buffer.from('Linux version'));
	t.is(String((await first).value), 'Linux version');

	const state = session.call(procedures.domainGetState, {dom: domain, flags: 0}, never);
	peer.reply(await peer.received.next(), procedures.domainGetState, {state: 1, reason: 1});
	t.is((await state).state, 1);

	const ended = output.return();
	const abort = await peer.received.next();
	t.like(abort, {serial: call.serial, type: messageType.stream, status: messageStatus.error});
	peer.send(call, messageType.stream, messageStatus.ok, empty);
	t.true((await ended).done);
});

test('a console ends with its VM', async t => {
	const {session, peer} = await connected(t);
	const output = session.console(domain, never);
	const first = output.next();
	const call = await opened(peer);
	peer.send(call, messageType.stream, messageStatus.continue, empty);
	await peer.received.next();
	peer.send(call, messageType.stream, messageStatus.ok, empty);
	t.true((await first).done);
});

test('a console that somebody else has open is refused, and one whose signal aborts is given back', async t => {
	const {session, peer} = await connected(t);
	const refused = t.throwsAsync(session.console(domain, never).next(), {
		instanceOf: LibvirtError,
		message: /Active console session/,
	});
	peer.refuse(await peer.received.next(), 9, 'operation failed: Active console session exists for this domain');
	await refused;

	const abort = new AbortController();
	const aborted = t.throwsAsync(session.console(domain, abort.signal).next(), {message: 'enough'});
	const call = await opened(peer);
	peer.ping();
	await peer.keepalive.next();
	abort.abort(new Error('enough'));
	t.like(await peer.received.next(), {serial: call.serial, type: messageType.stream, status: messageStatus.error});
	peer.send(call, messageType.stream, messageStatus.ok, empty);
	await aborted;
});

/** Finding the VM among addresses: late, silent, wrong, and gone ones. */
import {execFile, spawn} from 'node:child_process';
import {once} from 'node:events';
import {writeFile} from 'node:fs/promises';
import {createServer, type Socket} from 'node:net';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {setImmediate as turn, setTimeout as delay} from 'node:timers/promises';
import {connect} from 'node:tls';
import {promisify} from 'node:util';
import test from 'ava';
import {logObserver} from '../../src/observers/log-observer.ts';
import {makeCa, makeServerCertificate} from '../../src/relay/certificates.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {Scope} from '../../src/core/lifetime.ts';
import type {ForwarderTls} from '../../src/sandbox/ports.ts';
import {openIdentity} from '../../src/relay/identity.ts';
import {createAgentRelays} from '../../src/relay/relay.ts';
import {from} from '../contract/agent-relays.ts';
import {startForwarder} from '../support/forwarder.ts';
import {capturedLog, patient, realHarness, until, type RealHarness} from './harness.ts';

const execute = promisify(execFile);
const signal = (): AbortSignal => AbortSignal.timeout(100_000);
const target = ({directory}: RealHarness) => ({
	sandboxId: 'a',
	instanceName: 'podvm-a',
	socketPath: join(directory, 'a', 'agent.ttrpc'),
});

/** A second attempt proves that the first's outcome is known. */
const oneByOne = {...patient, strangerMs: 20};

/** The error that a deadline ends the opening with, once `when` holds. */
async function deadlineError(
	t: {throwsAsync: (promise: Promise<unknown>) => Promise<unknown>},
	harness: RealHarness,
	addresses: AsyncIterable<string>,
	when: Promise<unknown>,
	relays = harness.relays,
): Promise<AdaptorError> {
	using scope = new Scope();
	const thrown = t.throwsAsync(relays.open(target(harness), addresses, scope.signal));
	await Promise.race([when, thrown]);
	scope.abort(new AdaptorError({code: 'deadline-exceeded', what: 'Timed out'}));
	const error = await thrown;
	if (!(error instanceof AdaptorError)) {
		throw new TypeError('not an AdaptorError');
	}

	return error;
}

test("a client without a certificate is refused by the VM's forwarder", async t => {
	await using harness = await realHarness();
	const tls = await harness.relays.issue('podvm-a', signal());
	await using forwarder = await startForwarder({tls, address: harness.address(1), port: harness.port});
	const socket = connect({
		host: harness.address(1),
		port: harness.port,
		ca: harness.identity.serverCa,
		servername: 'podvm-a',
	});
	socket.resume();
	await t.throwsAsync(once(socket, 'close'));
	await until(() => forwarder.refused === 1);
	t.is(forwarder.proven, 0);
});

test('a certificate of our CA for another VM is never accepted, and the error says whose it is', async t => {
	await using harness = await realHarness({timings: oneByOne});
	const tls = await harness.relays.issue('podvm-other', signal());
	await using other = await startForwarder({
		tls,
		address: harness.address(1),
		port: harness.port,
		allowHalfOpen: false,
	});
	const error = await deadlineError(
		t,
		harness,
		from(harness.address(1)),
		until(() => other.dialled > 1),
	);
	t.is(error.code, 'deadline-exceeded');
	t.regex(error.what, /its certificate is for podvm-other, not for podvm-a/);
	t.regex(error.remedy ?? '', /stale DHCP leases/);
	await other.idle();
});

test('a certificate for the right name of another CA is never accepted', async t => {
	await using harness = await realHarness({timings: oneByOne});
	const validity = {notBefore: new Date(Date.now() - 1000), notAfter: new Date(Date.now() + 86_400_000)};
	const server = await makeServerCertificate('podvm-a', await makeCa('agent-protocol-forwarder', validity), validity);
	const {clientCa} = await harness.relays.issue('podvm-a', signal());
	const tls: ForwarderTls = {
		serverCert: server.cert,
		serverKey: server.key,
		...(clientCa === undefined ? {} : {clientCa}),
	};
	await using impostor = await startForwarder({
		tls,
		address: harness.address(1),
		port: harness.port,
		allowHalfOpen: false,
	});
	const error = await deadlineError(
		t,
		harness,
		from(harness.address(1)),
		until(() => impostor.dialled > 1),
	);
	t.regex(error.what, /its certificate is not accepted/);
	await impostor.idle();
});

test('if the clock of this node is behind the certificates, the error and the log name both times', async t => {
	await using harness = await realHarness({timings: oneByOne});
	const {log, lines} = await capturedLog();
	const identity = await openIdentity({
		directory: join(harness.directory, 'later'),
		log,
		now: () => new Date(Date.now() + 2.5 * 86_400_000),
	});
	const relays = createAgentRelays({
		identity,
		forwarderPort: harness.port,
		observer: logObserver(log),
		log,
		timings: oneByOne,
	});
	await using vm = await startForwarder({
		tls: await relays.issue('podvm-a', signal()),
		address: harness.address(1),
		port: harness.port,
		allowHalfOpen: false,
	});
	const error = await deadlineError(
		t,
		harness,
		from(harness.address(1)),
		until(() => vm.dialled > 3),
		relays,
	);
	t.regex(error.what, /not valid yet: the clock of this node is at \d{4}-\S+, the certificate is valid from \d{4}-/);
	t.regex(error.remedy ?? '', /clock/);
	t.regex(
		lines.find(({level, msg}) => level === 'warn' && msg.startsWith('could not verify that the address'))?.reason ??
			'',
		/clock of this node/,
	);
	await vm.idle();
});

test('another host at the address of the VM is logged with growing intervals, with address and name', async t => {
	await using harness = await realHarness({timings: oneByOne});
	await using other = await startForwarder({
		tls: await harness.relays.issue('podvm-other', signal()),
		address: harness.address(1),
		port: harness.port,
		allowHalfOpen: false,
	});
	await deadlineError(
		t,
		harness,
		from(harness.address(1)),
		until(() => harness.lines.filter(({msg}) => msg.startsWith('could not verify that the address')).length >= 7),
	);
	const told = harness.lines.filter(({msg}) => msg.startsWith('could not verify that the address')).slice(0, 7);
	t.deepEqual(
		told.map(({level}) => level),
		['warn', 'warn', 'debug', 'warn', 'debug', 'debug', 'debug'],
	);
	t.like(told[0], {
		address: harness.address(1),
		instanceName: 'podvm-a',
		attempt: 1,
		reason: 'its certificate is for podvm-other, not for podvm-a',
	});
	t.regex(told[0]?.remedy ?? '', /stale DHCP leases/);
	await other.idle();
});

for (const version of ['tls1_2', 'tls1_3'] as const) {
	// Not Node as the server: it looks at the client's certificate only when the handshake is over, unlike Go in real
	// VMs and OpenSSL here.
	test(`a VM that trusts another client certificate is not reached, and the error says so (${version})`, async t => {
		await using harness = await realHarness({timings: {...oneByOne, objectionMs: 60_000}});
		await using stranger = await realHarness();
		const {serverCert = '', serverKey} = await harness.relays.issue('podvm-a', signal());
		const file = async (name: string, content = ''): Promise<string> => {
			const path = join(harness.directory, name);
			await writeFile(path, content);
			return path;
		};
		const vm = spawn(
			'openssl',
			[
				's_server',
				'-accept',
				`${harness.address(1)}:${harness.port}`,
				`-${version}`,
				'-Verify',
				'1',
				'-verify_return_error',
				'-CAfile',
				await file('other', stranger.identity.client.cert),
				'-cert',
				await file('cert', serverCert),
				'-key',
				await file('key', serverKey?.reveal()),
			],
			{stdio: ['pipe', 'ignore', 'pipe']},
		);
		let said = '';
		vm.stderr.on('data', (chunk: Buffer) => {
			said += chunk.toString();
		});
		const exited = once(vm, 'exit');
		t.teardown(async () => {
			vm.kill();
			await exited;
		});
		const error = await deadlineError(
			t,
			harness,
			from(harness.address(1)),
			until(() => said.split('ERROR').length > 2),
		);
		t.regex(error.what, version === 'tls1_3' ? /refuses the client certificate/ : /the TLS handshake failed/);
	});
}

test('with TLS_SKIP_VERIFY, any server is accepted, and the log has a warning', async t => {
	await using harness = await realHarness();
	const tls = await harness.relays.issue('podvm-other', signal());
	await using _other = await startForwarder({tls, address: harness.address(1), port: harness.port});
	await using relay = await harness
		.relaysWith({skipVerify: true})
		.open(target(harness), from(harness.address(1)), signal());
	t.is(relay.address, harness.address(1));
	t.true(harness.lines.some(({level, msg}) => level === 'warn' && msg.includes('TLS_SKIP_VERIFY')));
});

test('the VM is found at an address that another host used before', async t => {
	await using harness = await realHarness({timings: oneByOne});
	const {relays, port, address} = harness;
	const other = await startForwarder({
		tls: await relays.issue('podvm-other', signal()),
		address: address(1),
		port,
		allowHalfOpen: false,
	});
	const opening = relays.open(target(harness), from(address(1)), signal());
	await until(() => other.dialled > 1);
	await other[Symbol.asyncDispose]();
	await using _vm = await startForwarder({tls: await relays.issue('podvm-a', signal()), address: address(1), port});
	await using relay = await opening;
	t.is(relay.address, address(1));
});

test('the error of a deadline tells how far each address got', async t => {
	await using harness = await realHarness();
	const none = await deadlineError(t, harness, never(), Promise.resolve());
	t.regex(none.what, /the VM has no address yet/);
	t.regex(none.remedy ?? '', /DHCP/);
	let refused = 0;
	const counting = connectCounter(() => refused++);
	t.teardown(counting.stop);
	const error = await deadlineError(
		t,
		harness,
		from(harness.address(1)),
		until(() => refused > 3),
	);
	t.is(
		error.what,
		`Could not reach the forwarder of the pod VM, the time limit has passed: ${harness.address(1)}: connection refused`,
	);
	t.regex(error.remedy ?? '', /FORWARDER_PORT/);
	t.deepEqual(error.where, {instanceName: 'podvm-a', port: harness.port});
});

test('an abort in the middle of the handshake leaves no connection, no socket and no timer', async t => {
	await using harness = await realHarness({timings: oneByOne});
	const sockets = new Set<Socket>();
	const silent = createServer(socket => {
		sockets.add(socket);
		socket
			.on('error', () => undefined)
			.once('close', () => sockets.delete(socket))
			.resume();
	}).listen(harness.port, harness.address(1));
	t.teardown(() => silent.close());
	await once(silent, 'listening');
	const abort = new AbortController();
	const thrown = t.throwsAsync(
		harness.relays.open(target(harness), from(harness.address(1), harness.address(2)), abort.signal),
		{message: 'enough'},
	);
	await until(() => sockets.size > 0);
	abort.abort(new Error('enough'));
	await thrown;
	await until(() => sockets.size === 0);
	t.false(await harness.isServed(target(harness).socketPath));
	// A candidate that was still alive would be back within its retry time of 25 ms.
	await using vm = await startForwarder({
		tls: await harness.relays.issue('podvm-a', signal()),
		address: harness.address(2),
		port: harness.port,
	});
	await using relay = await harness.relays.open(target(harness), from(harness.address(2)), signal());
	t.is(relay.address, harness.address(2));
	t.is(vm.proven, 1);
});

test('an address that drops packets delays no other, and its error differs from a refusal', async t => {
	await using harness = await realHarness({timings: {connectTimeoutMs: 100, hedgeAfterMs: 20}});
	const {relays, port, address} = harness;
	// A listener that never accepts, with its queue full: the kernel drops further SYNs, as a VM does before it is up.
	const listener = spawn(
		'python3',
		[
			'-c',
			'import socket,sys\ns=socket.socket()\ns.bind((sys.argv[1],int(sys.argv[2])))\ns.listen(0)\nc=socket.socket();c.connect(s.getsockname())\nprint("full",flush=True)\nsys.stdin.read()',
			address(1),
			String(port),
		],
		{stdio: ['pipe', 'pipe', 'inherit']},
	);
	const exited = once(listener, 'exit');
	t.teardown(async () => {
		listener.stdin.end();
		await exited;
	});
	await once(listener.stdout, 'data');
	using scope = new Scope();
	const failing = t.throwsAsync<AdaptorError>(relays.open(target(harness), from(address(1)), scope.signal));
	await using _vm = await startForwarder({tls: await relays.issue('podvm-a', signal()), address: address(2), port});
	await using relay = await relays.open(target(harness), from(address(1), address(2)), signal());
	t.is(relay.address, address(2));
	await delay(300); // the connect time-out is what is being tested
	// Both may be due in one turn: a socket that has timed out is closed at the turn's end.
	await turn();
	await turn();
	scope.abort(new AdaptorError({code: 'deadline-exceeded', what: 'Timed out'}));
	t.regex((await failing).what, /: no answer$/);
});

test('if several attempts are pending, only one begins a handshake when the VM is up', async t => {
	await using harness = await realHarness({timings: {...patient, hedgeAfterMs: 5}});
	const {relays, port, address} = harness;
	// As above, until it is told to accept. Then it prints a line for each connection that sends something.
	const script = [
		'import socket,sys,threading',
		's=socket.socket()',
		's.bind((sys.argv[1],int(sys.argv[2])))',
		's.listen(0)',
		'c=socket.socket();c.connect(s.getsockname())',
		'print("full",flush=True)',
		'sys.stdin.readline()',
		'def serve(a):',
		'  if a.recv(1): print("hello",flush=True)',
		'  a.recv(65536) and a.recv(65536)',
		'while True:',
		'  threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()',
	].join('\n');
	const listener = spawn('python3', ['-c', script, address(1), String(port)], {stdio: ['pipe', 'pipe', 'inherit']});
	const lines: string[] = [];
	createInterface({input: listener.stdout}).on('line', line => lines.push(line));
	const exited = once(listener, 'exit');
	t.teardown(async () => {
		listener.kill();
		await exited;
	});
	const unanswered = async (): Promise<number> =>
		(await execute('ss', ['-Htn', 'state', 'syn-sent', 'dst', address(1)])).stdout.split('\n').length - 1;
	await until(() => lines.includes('full'));
	const abort = new AbortController();
	const thrown = t.throwsAsync(relays.open(target(harness), from(address(1)), abort.signal), {message: 'enough'});
	await until(async () => (await unanswered()) >= 10);
	listener.stdin.write('\n');
	await until(() => lines.includes('hello'));
	await until(async () => (await unanswered()) === 0);
	abort.abort(new Error('enough'));
	await thrown;
	t.is(lines.filter(line => line === 'hello').length, 1);
});

test('TLS 1.2 with chosen suites, TLS 1.3 as the minimum, and the error when the VM cannot', async t => {
	await using harness = await realHarness({timings: oneByOne});
	const {port, address, relaysWith} = harness;
	const chosen = relaysWith({minVersion: 'VersionTLS12', cipherSuites: ['TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384']});
	const tls = await chosen.issue('podvm-a', signal());
	t.deepEqual(tls.cipherSuites, ['TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384']);
	t.is(tls.minVersion, 'VersionTLS12');
	await using old = await startForwarder({
		tls,
		address: address(1),
		port,
		maxVersion: 'TLSv1.2',
		allowHalfOpen: false,
	});
	await using relay = await chosen.open(target(harness), from(address(1)), signal());
	const accepted = await old.accept();
	t.is(accepted.getProtocol(), 'TLSv1.2');
	t.is(accepted.getCipher().name, 'ECDHE-ECDSA-AES256-GCM-SHA384');
	await relay[Symbol.asyncDispose]();
	await old.idle();
	const strict = relaysWith({minVersion: 'VersionTLS13'});
	const dialledBefore = old.dialled;
	const error = await deadlineError(
		t,
		harness,
		from(address(1)),
		until(() => old.dialled > dialledBefore + 1),
		strict,
	);
	t.regex(error.what, /the TLS handshake failed/);
	t.regex(error.remedy ?? '', /TLS_MIN_VERSION/);
	await using modern = await startForwarder({
		tls: await strict.issue('podvm-a', signal()),
		address: address(2),
		port,
	});
	await using second = await strict.open(target(harness), from(address(2)), signal());
	t.is((await modern.accept()).getProtocol(), 'TLSv1.3');
	t.truthy(second);
});

/** No address, and no end. */
async function* never(): AsyncGenerator<string> {
	await new Promise(() => undefined);
	yield '';
}

/** Calls back at turns of the event loop: enough of them for refused attempts. */
function connectCounter(onTurn: () => void): {stop: () => void} {
	const timer = setInterval(onTurn, 20);
	return {stop: () => clearInterval(timer)};
}

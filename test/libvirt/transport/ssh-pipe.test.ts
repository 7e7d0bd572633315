import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {chmod, mkdir, readFile, stat, writeFile} from 'node:fs/promises';
import {connect, createServer, type AddressInfo, type Server, type Socket} from 'node:net';
import {dirname, join} from 'node:path';
import type {Duplex} from 'node:stream';
import test, {type ExecutionContext} from 'ava';
import {AdaptorError} from '../../../src/core/errors.ts';
import {openPipe} from '../../../src/libvirt/transport/open-pipe.ts';
import type {OpenPipe, Pipe} from '../../../src/libvirt/transport/pipe.ts';
import type {SshPipeOptions} from '../../../src/libvirt/transport/ssh-pipe.ts';
import {parseLibvirtUri} from '../../../src/libvirt/uri.ts';
import {directoryOf} from '../../support/directory.ts';
import {startTestLibvirtd} from '../../support/libvirtd.ts';
import {run, startSshd, type Sshd, type SshdOptions} from '../../support/sshd.ts';

let shared: Sshd;
test.before(async () => {
	shared = await startSshd();
	await writeFile(`${shared.directory}/known_hosts`, await shared.knownHostsLine('ed25519'));
});
test.after.always(async () => shared[Symbol.asyncDispose]());

/** Another sshd with the keys of the shared one. */
async function sshdWith(t: ExecutionContext, options: SshdOptions): Promise<Sshd> {
	const sshd = await startSshd({...options, keysOf: shared.directory});
	t.teardown(async () => sshd[Symbol.asyncDispose]());
	await writeFile(`${sshd.directory}/known_hosts`, await sshd.knownHostsLine('ed25519'));
	return sshd;
}

interface Echo {
	readonly path: string;
	readonly connections: ReadonlySet<Socket>;
	readonly server: Server;
}

/** What a socket of libvirt's is to a pipe: it answers when it is spoken to. */
async function echoAt(
	t: ExecutionContext,
	path: string,
	serve: (socket: Socket) => void = socket => void socket.pipe(socket),
): Promise<Echo> {
	const connections = new Set<Socket>();
	const server = createServer(socket => {
		connections.add(socket);
		socket.on('error', () => undefined);
		socket.on('close', () => connections.delete(socket));
		serve(socket);
	});
	server.listen(path);
	await once(server, 'listening');
	t.teardown(() => {
		server.close();
		for (const socket of connections) {
			socket.destroy();
		}
	});
	return {path, connections, server};
}

let sockets = 0;
/** A socket of the test's own at the shared sshd. */
async function ownEcho(t: ExecutionContext, serve?: (socket: Socket) => void): Promise<Echo> {
	return echoAt(t, `${shared.directory}/own-${++sockets}`, serve);
}

interface Opening {
	readonly sshd?: Sshd;
	/** Parameters of the URI, known_hosts and keyfile being given. */
	readonly parameters?: Readonly<Record<string, string>>;
	readonly without?: readonly string[];
	readonly options?: Partial<SshPipeOptions>;
	readonly authority?: string;
}

interface Warning {
	readonly reason?: string;
	readonly path?: string;
}

function opening({
	sshd = shared,
	parameters = {},
	without = [],
	options = {},
	authority = `root@127.0.0.1:${sshd.port}`,
}: Opening): {open: OpenPipe; warnings: Warning[]} {
	const warnings: Warning[] = [];
	const all = Object.entries({
		known_hosts: `${sshd.directory}/known_hosts`,
		keyfile: sshd.userKey,
		...parameters,
	}).filter(([name]) => !without.includes(name));
	const uri = parseLibvirtUri(
		`qemu+ssh://${authority}/system?${all.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('&')}`,
	);
	const log = {debug: () => undefined, warn: (fields: Warning) => void warnings.push(fields)};
	return {
		open: openPipe(uri, {
			log,
			home: '/nonexistent',
			user: 'root',
			agentSocket: undefined,
			connectTimeoutMs: 120_000,
			...options,
		}),
		warnings,
	};
}

function authorityOf(server: Server): string {
	return `root@127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function opened(t: ExecutionContext, open: OpenPipe): Promise<Pipe> {
	const pipe = await open(AbortSignal.timeout(300_000));
	t.teardown(() => pipe.close());
	return pipe;
}

async function refused(t: ExecutionContext, open: OpenPipe): Promise<AdaptorError> {
	return t.throwsAsync<AdaptorError>(open(AbortSignal.timeout(300_000)), {instanceOf: AdaptorError});
}

async function ask(pipe: Pipe, text: string): Promise<string> {
	pipe.duplex.write(text);
	const [answer] = (await once(pipe.duplex, 'data')) as [Buffer];
	return answer.toString();
}

/** Resolves with the error, if any, once the duplex is closed. */
async function closed(duplex: Duplex): Promise<Error | undefined> {
	let reason: Error | undefined;
	duplex.on('error', error => {
		reason = error;
	});
	duplex.resume();
	if (!duplex.closed) {
		await new Promise(resolve => duplex.once('close', resolve));
	}

	return reason ?? duplex.errored ?? undefined;
}

for (const [title, options, route] of [
	['by default the socket is forwarded', {}, /socket .*libvirt-sock$/],
	['where commands are forbidden the socket is forwarded', {config: ['MaxSessions 0']}, /socket .*libvirt-sock$/],
	[
		'where socket forwarding is off virt-ssh-helper is run',
		{config: ['AllowStreamLocalForwarding no']},
		/virt-ssh-helper$/,
	],
	['where all forwarding is off virt-ssh-helper is run', {config: ['DisableForwarding yes']}, /virt-ssh-helper$/],
	// sshd may count the command that looked around for a moment longer than it ran, so the first way may be refused
	// and the next one taken.
	[
		'where commands must come one at a time one is run',
		{config: ['DisableForwarding yes', 'MaxSessions 1']},
		/virt-ssh-helper$|nc -U .*libvirt-sock$/,
	],
	['with a restricted key virt-ssh-helper is run', {keyOptions: 'restrict'}, /virt-ssh-helper$/],
	[
		'with a restricted key that may forward the socket is forwarded',
		{keyOptions: 'restrict,port-forwarding'},
		/socket .*libvirt-sock$/,
	],
	[
		'a forced virt-ssh-helper is used',
		{keyOptions: 'restrict,command="virt-ssh-helper qemu:///system"'},
		/virt-ssh-helper$/,
	],
	[
		'without virt-ssh-helper nc is run',
		{config: ['DisableForwarding yes'], commands: ['sh', 'nc', 'grep']},
		/nc -U .*libvirt-sock$/,
	],
] satisfies Array<[string, SshdOptions, RegExp]>) {
	test(title, async t => {
		const sshd = await sshdWith(t, options);
		const echo = await echoAt(t, `${sshd.runLibvirt}/libvirt-sock`);
		const {open, warnings} = opening({sshd});
		const pipe = await opened(t, open);
		t.regex(pipe.description, route);
		t.is(await ask(pipe, 'hello'), 'hello');
		t.is(echo.connections.size, 1);
		t.deepEqual(warnings, []);
		const [connection] = echo.connections;
		pipe.close();
		pipe.close();
		await (connection?.closed === false ? once(connection, 'close') : undefined);
		await sshd.idle();
		t.is(await closed(pipe.duplex), undefined);
	});
}

test("the driver's own daemon is preferred, and what worked is tried first the next time", async t => {
	const sshd = await sshdWith(t, {});
	await echoAt(t, `${sshd.runLibvirt}/libvirt-sock`);
	const {open} = opening({sshd});
	const first = await opened(t, open);
	await ask(first, 'hello');
	await echoAt(t, `${sshd.runLibvirt}/virtqemud-sock`);
	t.regex((await opened(t, open)).description, /libvirt-sock$/);
	t.regex((await opened(t, opening({sshd}).open)).description, /virtqemud-sock$/);
});

test('a socket that closes without data is reported, and the next connection tries the next socket first', async t => {
	const sshd = await sshdWith(t, {});
	await echoAt(t, `${sshd.runLibvirt}/virtqemud-sock`, socket => void socket.end());
	await echoAt(t, `${sshd.runLibvirt}/libvirt-sock`);
	const {open} = opening({sshd});
	const first = await opened(t, open);
	// When the hang-up comes with the opening, the next socket is tried at once.
	if (first.description.endsWith('virtqemud-sock')) {
		t.regex((await closed(first.duplex))?.message ?? '', /closed the connection to libvirt.*virtqemud-sock/);
	}

	const second = await opened(t, open);
	t.is(await ask(second, 'hello'), 'hello');
	t.regex(second.description, /libvirt-sock$/);
});

test('a command that ends early gives its status and what it said', async t => {
	const sshd = await sshdWith(t, {config: ['AllowStreamLocalForwarding no']});
	const {open} = opening({sshd, parameters: {proxy: 'native'}});
	// The command may end before the pipe is handed over or after: whoever hears of it hears why.
	const error: unknown = await opened(t, open).then(
		async pipe => closed(pipe.duplex),
		(refusal: unknown) => refusal,
	);
	t.true(error instanceof AdaptorError && error.code === 'unavailable');
	t.regex(String(error), /status 1: virt-ssh-helper: cannot connect.*No such file/s);
});

test('if no route works, the error names every route that was tried', async t => {
	const sshd = await sshdWith(t, {config: ['DisableForwarding yes'], commands: ['sh']});
	const error = await refused(t, opening({sshd}).open);
	t.is(error.code, 'unavailable');
	t.regex(
		error.message,
		/virtqemud-sock: .*open fail.*libvirt-sock: .*virt-ssh-helper: not installed; nc -U .*virtqemud-sock: not installed/is,
	);
	await sshd.idle();
});

test('socket= is the only socket, and is reached by nc where forwarding is off', async t => {
	const sshd = await sshdWith(t, {config: ['DisableForwarding yes']});
	await echoAt(t, `${sshd.runLibvirt}/libvirt-sock`, socket => void socket.end('wrong'));
	const own = await echoAt(t, `${sshd.directory}/it's mine`);
	const pipe = await opened(t, opening({sshd, parameters: {socket: own.path}}).open);
	t.is(await ask(pipe, 'hello'), 'hello');
	t.regex(pipe.description, /nc -U .*it's mine$/);
});

test('a hang-up of the daemon closes the pipe after all it sent was read', async t => {
	const payload = Buffer.alloc(3_000_000, 'x');
	const echo = await ownEcho(t, socket => void socket.end(payload));
	const pipe = await opened(t, opening({parameters: {socket: echo.path}}).open);
	let received = 0;
	for await (const chunk of pipe.duplex
		.on('error', () => undefined)
		.iterator({destroyOnReturn: false}) as AsyncIterable<Buffer>) {
		received += chunk.length;
		if (received >= payload.length) {
			break;
		}
	}

	t.is(received, payload.length);
	t.regex((await closed(pipe.duplex))?.message ?? '', /closed the connection to libvirt/);
});

test('bytes pass unchanged in both directions at once, more than any window holds', async t => {
	const echo = await ownEcho(t);
	const pipe = await opened(t, opening({parameters: {socket: echo.path}}).open);
	const sent = Buffer.alloc(12_000_000, Buffer.from(Array.from({length: 251}, (_, index) => index)));
	pipe.duplex.write(sent);
	const chunks: Buffer[] = [];
	let received = 0;
	for await (const chunk of pipe.duplex as AsyncIterable<Buffer>) {
		chunks.push(chunk);
		received += chunk.length;
		if (received >= sent.length) {
			break;
		}
	}

	t.true(Buffer.concat(chunks).equals(sent));
});

test('a killed sshd session closes the pipe with the reason, read or unread', async t => {
	const sshd = await sshdWith(t, {});
	const flood = Buffer.alloc(8_000_000);
	await echoAt(t, `${sshd.runLibvirt}/libvirt-sock`, socket => void socket.write(flood));
	const pipe = await opened(t, opening({sshd}).open);
	await once(pipe.duplex, 'readable');
	for (const pid of await sshd.sessionPids()) {
		process.kill(pid, 'SIGKILL');
	}

	// Not read on purpose: the pipe must close all the same.
	const error = await new Promise<Error>(resolve => pipe.duplex.once('error', resolve));
	t.regex(error.message, /ssh connection to the host was lost/);
	t.true(pipe.duplex.destroyed);
});

test('a host that no longer answers is noticed by keepalive', async t => {
	const sshd = await sshdWith(t, {});
	await echoAt(t, `${sshd.runLibvirt}/libvirt-sock`);
	const pipe = await opened(t, opening({sshd, options: {keepaliveIntervalMs: 1000, keepaliveCount: 5}}).open);
	t.is(await ask(pipe, 'hello'), 'hello');
	const pids = await sshd.sessionPids();
	t.true(pids.length > 0);
	for (const pid of pids) {
		process.kill(pid, 'SIGSTOP');
	}

	t.regex((await closed(pipe.duplex))?.message ?? '', /lost: Keepalive timeout/);
});

test('an answering host outlives many keepalive intervals', async t => {
	const echo = await ownEcho(t);
	const pipe = await opened(
		t,
		opening({parameters: {socket: echo.path}, options: {keepaliveIntervalMs: 10, keepaliveCount: 200}}).open,
	);
	for (const startedAt = performance.now(); performance.now() - startedAt < 3000;) {
		t.is(await ask(pipe, 'hello'), 'hello');
	}

	t.false(pipe.duplex.destroyed);
});

test('an attempt that is aborted at any point of it leaves no connection', async t => {
	const echo = await ownEcho(t);
	let finished = false;
	for (let limit = 1; !finished; limit += 2) {
		const abort = new AbortController();
		const reason = new Error(`aborted at chunk ${limit}`);
		let chunks = 0;
		const ends: Array<Promise<unknown>> = [];
		const proxy = createServer(inner => {
			const outer = connect(shared.port, '127.0.0.1');
			for (const [from, to] of [
				[inner, outer],
				[outer, inner],
			] as const) {
				from.on('error', () => undefined);
				from.on('data', chunk => {
					to.write(chunk);
					if (++chunks === limit) {
						abort.abort(reason);
					}
				});
				from.on('close', () => to.destroy());
				ends.push(new Promise(resolve => from.once('close', resolve)));
			}
		}).listen(0, '127.0.0.1');
		await once(proxy, 'listening');
		const {open} = opening({authority: authorityOf(proxy), parameters: {no_verify: '1', socket: echo.path}});
		try {
			const pipe = await open(abort.signal);
			finished = true;
			pipe.close();
		} catch (error) {
			t.is(error, reason);
		}

		await Promise.all(ends);
		proxy.close();
		await once(proxy, 'close');
	}

	t.pass();
});

test('a real libvirtd answers through its socket', async t => {
	const libvirtd = await startTestLibvirtd();
	t.teardown(async () => libvirtd[Symbol.asyncDispose]());
	const pipe = await opened(t, opening({parameters: {socket: libvirtd.socketPath}}).open);
	// AUTH_LIST: length 28, program REMOTE version 1, procedure 66, CALL, serial 1, OK (libvirt,
	// src/rpc/virnetprotocol.x).
	pipe.duplex.write(Buffer.from('0000001c200080860000000100000042000000000000000100000000', 'hex'));
	const [reply] = (await once(pipe.duplex, 'data')) as [Buffer];
	t.is(reply.subarray(4, 28).toString('hex'), '200080860000000100000042000000010000000100000000');
	await libvirtd.stop();
	t.regex((await closed(pipe.duplex))?.message ?? '', /closed the connection to libvirt/);
});

test('an attempt is not begun with an aborted signal', async t => {
	await t.throwsAsync(opening({authority: 'root@127.0.0.1:1'}).open(AbortSignal.abort(new Error('no'))), {
		message: 'no',
	});
});

test('a server that says nothing is given up at the deadline, which names what was awaited', async t => {
	const connections: Socket[] = [];
	const server = createServer(socket => void connections.push(socket)).listen(0, '127.0.0.1');
	t.teardown(() => server.close());
	await once(server, 'listening');
	const error = await refused(t, opening({authority: authorityOf(server), options: {connectTimeoutMs: 2000}}).open);
	t.is(error.code, 'deadline-exceeded');
	t.regex(error.message, /libvirt at 127\.0\.0\.1 over ssh/);
	const [connection] = connections;
	t.truthy(connection);
	if (connection?.closed === false) {
		connection.resume();
		await once(connection, 'close');
	}
});

test("a host that does not listen, does not use ssh or does not resolve is 'unavailable', with a remedy", async t => {
	const server = createServer(socket => void socket.resume().end('HTTP/1.1 400 Bad Request\r\n\r\n')).listen(
		0,
		'127.0.0.1',
	);
	await once(server, 'listening');
	const authority = authorityOf(server);
	const strange = await refused(t, opening({authority}).open);
	t.is(strange.code, 'unavailable');
	t.regex(strange.message, /ssh session.*sshd/s);
	server.close();
	await once(server, 'close');
	const dead = await refused(t, opening({authority}).open);
	t.is(dead.code, 'unavailable');
	t.regex(dead.message, /ECONNREFUSED.*Nothing listens on that port/s);
	const nowhere = await refused(t, opening({authority: `root@${'a'.repeat(64)}.invalid`}).open);
	t.is(nowhere.code, 'unavailable');
	t.regex(nowhere.message, /ENOTFOUND.*resolve/s);
});

test('a host with one known key type is accepted with that key, whichever type sshd prefers', async t => {
	const echo = await ownEcho(t);
	for (const type of ['ed25519', 'ecdsa', 'rsa'] as const) {
		const path = `${shared.directory}/known-${type}`;
		await writeFile(path, await shared.knownHostsLine(type));
		const {open, warnings} = opening({parameters: {known_hosts: path, socket: echo.path}});
		t.is(await ask(await opened(t, open), type), type);
		t.deepEqual(warnings, []);
	}
});

test('hashed known_hosts are understood', async t => {
	const echo = await ownEcho(t);
	const path = `${shared.directory}/known-hashed`;
	await writeFile(path, await shared.knownHostsLine('ecdsa'));
	await run('ssh-keygen', ['-H', '-f', path]);
	t.regex(await readFile(path, 'utf8'), /^\|1\|/);
	t.is(
		await ask(await opened(t, opening({parameters: {known_hosts: path, socket: echo.path}}).open), 'hello'),
		'hello',
	);
});

test('an unknown host key is refused with its fingerprint and the command that makes it known', async t => {
	const path = `${shared.directory}/known-none`;
	await writeFile(path, 'rubbish\n');
	const {stdout} = await run('ssh-keygen', ['-lf', `${shared.directory}/ssh_host_ed25519_key.pub`]);
	const error = await refused(t, opening({parameters: {known_hosts: path}}).open);
	t.is(error.code, 'unauthenticated');
	t.is(error.where['offered'], `ssh-ed25519 ${stdout.split(' ')[1] ?? ''}`);
	t.true(error.message.includes(`ssh-keyscan -p ${shared.port} 127.0.0.1 >> ${path}`));
	t.regex(error.message, /no_verify=1/);
	t.regex(error.message, /line 1 \(fewer than/);
	t.regex(
		(await refused(t, opening({parameters: {known_hosts: '/nonexistent'}}).open)).message,
		/known_hosts file does not exist/,
	);
});

test('a changed host key is refused even with known_hosts_verify=auto, naming the line', async t => {
	const path = `${shared.directory}/known-other`;
	await writeFile(path, `# first\n[127.0.0.1]:${shared.port} ${await readFile(`${shared.userKey}.pub`, 'utf8')}`);
	for (const verify of ['normal', 'auto']) {
		const error = await refused(t, opening({parameters: {known_hosts: path, known_hosts_verify: verify}}).open);
		t.is(error.name, 'HostKeyError');
		t.regex(error.message, /has changed: line 2 \(ssh-ed25519\).*ssh-keygen -f .* -R/s);
	}
});

test('a revoked host key is refused', async t => {
	const path = `${shared.directory}/known-revoked`;
	const line = await shared.knownHostsLine('ed25519');
	await writeFile(path, `${line}@revoked ${line}`);
	t.regex((await refused(t, opening({parameters: {known_hosts: path}}).open)).message, /revoked by line 2/);
});

test('an unverified host key is warned about at every connect', async t => {
	const echo = await ownEcho(t);
	const {open, warnings} = opening({parameters: {no_verify: '1', socket: echo.path}});
	await opened(t, open);
	await opened(t, open);
	t.is(warnings.length, 2);
	t.regex(warnings[1]?.reason ?? '', /not verified/);
});

for (const [what, before, host] of [
	['a new file', undefined, /^\[127\.0\.0\.1\]:\d+$/],
	['a file without a newline at its end', '# mine', /^\[127\.0\.0\.1\]:\d+$/],
	['a file of hashed hosts', '|1|', /^\|1\|/],
] as const) {
	test(`known_hosts_verify=auto records the key that it accepts in ${what}`, async t => {
		const echo = await ownEcho(t);
		const path = join(await directoryOf(t), 'ssh', 'known_hosts');
		if (before !== undefined) {
			await mkdir(dirname(path));
			await writeFile(path, before);
		}

		if (before === '|1|') {
			await writeFile(path, `other.example.com ${await readFile(`${shared.userKey}.pub`, 'utf8')}`);
			await run('ssh-keygen', ['-H', '-f', path]);
		}

		const former = await readFile(path, 'utf8').catch(() => '');
		const {open, warnings} = opening({
			parameters: {known_hosts: path, known_hosts_verify: 'auto', socket: echo.path},
		});
		await opened(t, open);
		t.regex(warnings[0]?.reason ?? '', /unknown and was accepted .* stored in \/.*known_hosts/);
		const text = await readFile(path, 'utf8');
		t.true(text.startsWith(former));
		const lines = text
			.trim()
			.split('\n')
			.slice(former === '' ? 0 : former.trim().split('\n').length);
		t.is(lines.length, 1);
		t.regex(lines[0]?.split(' ')[0] ?? '', host);
		if (before === undefined) {
			t.is((await stat(path)).mode & 0o777, 0o600);
			t.is((await stat(dirname(path))).mode & 0o777, 0o700);
		}

		// OpenSSH reads it as well, and it is known now, to auto and to the strict check.
		t.regex((await run('ssh-keygen', ['-F', `[127.0.0.1]:${shared.port}`, '-f', path])).stdout, /found: line/);
		await opened(t, open);
		const strict = opening({parameters: {known_hosts: path, socket: echo.path}});
		await opened(t, strict.open);
		t.deepEqual([warnings.length, strict.warnings.length], [1, 0]);
	});
}

test('a host that was recorded with one key is refused with another', async t => {
	const echo = await ownEcho(t);
	const path = join(await directoryOf(t), 'known_hosts');
	await opened(t, opening({parameters: {known_hosts: path, known_hosts_verify: 'auto', socket: echo.path}}).open);
	await using other = await startSshd();
	// It takes the address over, as far as known_hosts can tell.
	await writeFile(path, (await readFile(path, 'utf8')).replace(`:${shared.port} `, `:${other.port} `));
	const error = await refused(
		t,
		opening({
			authority: `root@127.0.0.1:${other.port}`,
			parameters: {known_hosts: path, known_hosts_verify: 'auto'},
		}).open,
	);
	t.is(error.name, 'HostKeyError');
});

test('a key that cannot be recorded is a warning, and the connection is used all the same', async t => {
	const echo = await ownEcho(t);
	// No file can be made in a process's directory of /proc, by nobody.
	const {open, warnings} = opening({
		parameters: {known_hosts: '/proc/self/known_hosts', known_hosts_verify: 'auto', socket: echo.path},
	});
	t.is(await ask(await opened(t, open), 'hello'), 'hello');
	t.regex(warnings[0]?.reason ?? '', /unknown and was accepted .*; Could not add the ssh host key .*known_hosts=/);
});

test('the key of a host that refuses the login is not stored', async t => {
	const path = join(await directoryOf(t), 'known_hosts');
	await refused(
		t,
		opening({
			authority: `somebody@127.0.0.1:${shared.port}`,
			parameters: {known_hosts: path, known_hosts_verify: 'auto'},
		}).open,
	);
	await t.throwsAsync(stat(path), {code: 'ENOENT'});
});

test('keys of the home directory are tried, and those that cannot be used are passed over', async t => {
	const echo = await ownEcho(t);
	const home = `${shared.directory}/home`;
	await run('mkdir', ['-p', `${home}/.ssh`]);
	await writeFile(`${home}/.ssh/id_ed25519`, 'not a key');
	await run('ssh-keygen', ['-q', '-t', 'rsa', '-b', '2048', '-N', '', '-f', `${home}/.ssh/id_rsa`]);
	await run('cp', [shared.userKey, `${home}/.ssh/id_zeta`]);
	const pipe = await opened(
		t,
		opening({without: ['keyfile'], parameters: {socket: echo.path}, options: {home}}).open,
	);
	t.is(await ask(pipe, 'hello'), 'hello');
	await run('rm', [`${home}/.ssh/id_zeta`]);
	const error = await refused(t, opening({without: ['keyfile'], options: {home}}).open);
	t.is(error.code, 'unauthenticated');
	t.like(error.where, {user: 'root', host: '127.0.0.1', hostAccepts: 'publickey'});
	t.regex(error.message, /tried: key .*id_rsa; not usable: .*id_ed25519: .*no usable private key.*authorized_keys/s);
});

test("the user is that of the URI, or else the caller's", async t => {
	const {open} = opening({authority: `127.0.0.1:${shared.port}`, options: {user: 'somebody'}});
	const error = await refused(t, open);
	t.is(error.where['user'], 'somebody');
	t.regex(shared.log(), /Invalid user somebody/);
});

test('login with a key in an agent works, and a missing agent is named in the error', async t => {
	const echo = await ownEcho(t);
	const agentSocket = `${shared.directory}/agent`;
	const agent = spawn('ssh-agent', ['-D', '-a', agentSocket], {stdio: ['ignore', 'pipe', 'ignore']});
	const exited = once(agent, 'exit');
	t.teardown(async () => {
		agent.kill();
		await exited;
	});
	await once(agent.stdout, 'data');
	await run('ssh-add', ['-q', shared.userKey], {env: {...process.env, SSH_AUTH_SOCK: agentSocket}});
	const pipe = await opened(
		t,
		opening({without: ['keyfile'], parameters: {socket: echo.path}, options: {agentSocket}}).open,
	);
	t.is(await ask(pipe, 'hello'), 'hello');
	t.is(
		(
			await refused(
				t,
				opening({without: ['keyfile'], parameters: {sshauth: 'privkey'}, options: {agentSocket}}).open,
			)
		).code,
		'unauthenticated',
	);
	const error = await refused(t, opening({without: ['keyfile'], options: {agentSocket: '/nonexistent'}}).open);
	t.regex(error.message, /tried: agent \/nonexistent; Failed to connect to agent/);
});

test('a key file that is encrypted, missing, public or no key is refused before anything is sent', async t => {
	const path = `${shared.directory}/special`;
	const attempt = async (keyfile: string): Promise<AdaptorError> =>
		refused(t, opening({authority: 'root@127.0.0.1:1', parameters: {keyfile}}).open);
	await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', 'secret words', '-f', path]);
	const encrypted = await attempt(path);
	t.is(encrypted.code, 'failed-precondition');
	t.regex(encrypted.message, /encrypted with a passphrase.*ssh-keygen -p/s);
	t.is((await attempt('/nonexistent/key')).code, 'not-found');
	t.regex((await attempt(`${path}.pub`)).message, /only contains a public key/);
	t.regex((await attempt('/etc/hostname')).message, /no usable private key/);
	t.is((await attempt('/etc')).code, 'permission-denied');
});

test('a key file that others may read is warned about', async t => {
	const echo = await ownEcho(t);
	const keyfile = `${shared.directory}/open-key`;
	await writeFile(keyfile, await readFile(shared.userKey));
	await chmod(keyfile, 0o644);
	const {open, warnings} = opening({parameters: {keyfile, socket: echo.path}});
	await opened(t, open);
	t.deepEqual(
		warnings.map(({path}) => path),
		[keyfile],
	);
});

/** The process as a container runs it: arguments and environment in, lines and exit code out. */
import {spawn, type ChildProcessByStdio} from 'node:child_process';
import {once} from 'node:events';
import {cp, readdir, readFile, stat, symlink} from 'node:fs/promises';
import {connect, createServer, type AddressInfo} from 'node:net';
import {dirname, join} from 'node:path';
import {createInterface} from 'node:readline';
import type {Readable} from 'node:stream';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import test, {type ExecutionContext} from 'ava';
import {loadContract} from '../src/api/contract.ts';
import {TtrpcClient, type ClientMethod} from '../src/ttrpc/client.ts';
import {directoryOf} from './support/directory.ts';
import {grpcCall} from './support/grpc-call.ts';
import {startTestDriverHost} from './support/test-driver-host.ts';
import {startTestLibvirtd} from './support/libvirtd.ts';
import {caughtSignals, nodeOptions} from './support/node-options.ts';

const repository = fileURLToPath(new URL('..', import.meta.url));
const never = new AbortController().signal;
const source = join(repository, 'src/main.ts');

interface Line {
	readonly level: string;
	readonly msg: string;
	readonly [field: string]: unknown;
}

/** One run; killed with its test. */
class Process {
	readonly child: ChildProcessByStdio<null, Readable, Readable>;
	readonly exited: Promise<readonly [code: number | null, signal: NodeJS.Signals | null]>;
	readonly stdout: Promise<string>;
	readonly lines: string[] = [];
	readonly #watchers = new Set<() => void>();

	constructor(
		t: ExecutionContext,
		words: readonly string[],
		env: Readonly<Record<string, string>> = {},
		main = source,
		before: readonly string[] = [],
	) {
		const [program, ...rest] = [...before, process.execPath, ...nodeOptions, main, ...words] as [
			string,
			...string[],
		];
		this.child = spawn(program, rest, {
			env: {PATH: process.env['PATH'], HOME: '/nonexistent', ...env},
			stdio: ['ignore', 'pipe', 'pipe'],
		});
		this.exited = once(this.child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
		t.teardown(async () => {
			this.child.kill('SIGKILL');
			await this.exited;
		});
		this.stdout = text(this.child.stdout);
		createInterface({input: this.child.stderr}).on('line', line => {
			this.lines.push(line);
			this.#look();
		});
		void this.exited.then(() => this.#look());
	}

	get stderr(): string {
		return this.lines.join('\n');
	}

	/** The first line that contains the text, also one that came before. @throws when the process ends without it */
	async line(wanted: string): Promise<string> {
		for (;;) {
			const found = this.lines.find(line => line.includes(wanted));
			if (found !== undefined) {
				return found;
			}

			if (this.child.exitCode !== null || this.child.signalCode !== null) {
				throw new Error(`It ended without saying ${wanted}:\n${this.stderr}`);
			}

			await new Promise<void>(resolve => {
				const watcher = (): void => {
					this.#watchers.delete(watcher);
					resolve();
				};
				this.#watchers.add(watcher);
			});
		}
	}

	async event(message: string): Promise<Line> {
		return JSON.parse(await this.line(`"msg":"${message}"`)) as Line;
	}

	#look(): void {
		for (const watcher of [...this.#watchers]) {
			watcher();
		}
	}
}

interface Daemon extends Process {
	readonly socketPath: string;
}

/** On sockets of the test's own. */
async function daemon(t: ExecutionContext, env: Readonly<Record<string, string>>, main = source): Promise<Daemon> {
	const directory = await directoryOf(t);
	const socketPath = join(directory, 'run/h.sock');
	return Object.assign(
		new Process(
			t,
			['libvirt'],
			{
				REMOTE_HYPERVISOR_ENDPOINT: socketPath,
				PODS_DIR: join(directory, 'p'),
				CLUSTER_ID: 'test',
				NODE_NAME: 'worker-0',
				LIBVIRT_URI: `test:///default?socket=${directory}/none`,
				...env,
			},
			main,
		),
		{socketPath},
	);
}

async function versionOver(socketPath: string): Promise<unknown> {
	await using client = new TtrpcClient(connect(socketPath));
	const {Version} = loadContract().hypervisor;
	return await client.call(
		Version as unknown as ClientMethod<object, object>,
		{version: ''},
		{timeoutMs: 60_000},
		never,
	);
}

test('help explains every command on standard output, version tells the version', async t => {
	const [help, version] = [new Process(t, ['help']), new Process(t, ['version'])];
	t.deepEqual(await help.exited, [0, null]);
	t.regex(await help.stdout, /^Usage: cloud-api-adaptor COMMAND/);
	t.deepEqual(await version.exited, [0, null]);
	t.regex(
		await version.stdout,
		/^cloud-api-adaptor \d+\.\d+\.\d+\ncommit unknown\nNode\.js v\d+\.\d+\.\d+\nkata remote hypervisor API 0\.0\.0 .*\nrelay process contract \d+ .*\n$/,
	);
	t.is(help.stderr + version.stderr, '');
});

test('wrong arguments end the process with 2 and a remedy', async t => {
	for (const words of [[], ['libvrt'], ['libvirt', '-no-such-flag']]) {
		const wrong = new Process(t, words);
		t.deepEqual(await wrong.exited, [2, null]);
		t.regex(wrong.stderr, /^cloud-api-adaptor: .*See "cloud-api-adaptor help(?: libvirt)?"\.$/);
		t.is(await wrong.stdout, '');
	}
});

test('all configuration problems are reported at once, with exit code 2 and without passwords', async t => {
	const wrong = new Process(t, ['libvirt', '-cpu', 'many'], {
		LIBVIRT_MEMORY: 'much',
		LIBVIRT_URI: 'qemu+ssh://root:hunter2@host/system',
		CLUSTER_ID: 'test',
		LOG_LEVEL: 'loud',
	});
	t.deepEqual(await wrong.exited, [2, null]);
	t.deepEqual(
		wrong.lines.slice(1).map(line => line.trim().split(' ')[0]),
		['LIBVIRT_URI', '-cpu', 'LIBVIRT_MEMORY', 'LOG_LEVEL'],
	);
	t.notRegex(wrong.stderr, /hunter2/);
});

test('the process runs with a user id without an account, as in containers', async t => {
	const wrong = new Process(t, ['libvirt', '-cpu', 'many'], {CLUSTER_ID: 'test'}, source, [
		'unshare',
		'--user',
		'--map-user=65532',
		'--map-group=65532',
	]);
	t.deepEqual(await wrong.exited, [2, null]);
	t.regex(wrong.stderr, /-cpu/);
});

test('it says when it is ready, answers on its socket, and SIGTERM ends it with 0 and without the socket', async t => {
	await using libvirtd = await startTestLibvirtd();
	const running = await daemon(t, {
		LIBVIRT_URI: `test:///default?socket=${libvirtd.socketPath}`,
		PEER_SECRET: 'hunter2',
		INITDATA: 'algorithm = "sha256"\nversion = "0.1.0"\n[data]\na = "hunter3"',
	});
	t.like(await running.event('ready'), {level: 'info', path: running.socketPath, node: 'worker-0', pool: 'default'});
	t.deepEqual(await versionOver(running.socketPath), {version: '0.0.0'});
	t.like(await running.event('libvirt connected'), {level: 'info', connection: 1});
	running.child.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
	t.like(await running.event('stopping'), {reason: 'The process received SIGTERM'});
	await t.throwsAsync(stat(running.socketPath), {code: 'ENOENT'});
	// What it finds when it looks around is another matter: there is little for pod VMs here.
	const said = running.lines.map(line => JSON.parse(line) as Line).filter(({msg}) => msg !== 'check failed');
	t.deepEqual(
		said.map(({level}) => level).filter(level => level !== 'info' && level !== 'warn'),
		[],
	);
	t.notRegex(running.stderr, /hunter/);
});

test("kubelet's startup probe is answered once it is ready", async t => {
	const free = createServer().listen(0, '127.0.0.1');
	await once(free, 'listening');
	const {port} = free.address() as AddressInfo;
	free.close();
	await once(free, 'close');
	const running = await daemon(t, {PROBE_PORT: String(port), LOG_LEVEL: 'debug'});
	await running.event('probes are served');
	t.is((await fetch(`http://127.0.0.1:${port}/startup`)).status, 200);
	running.child.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
});

test('a SIGTERM that comes while it starts ends it with 0', async t => {
	const starting = await daemon(t, {});
	await starting.event('starting');
	starting.child.kill('SIGTERM');
	t.deepEqual(await starting.exited, [0, null]);
	await t.throwsAsync(stat(starting.socketPath), {code: 'ENOENT'});
});

test('a second signal ends it at once, though a call is under way', async t => {
	// A libvirt that falls silent: a call waits for it until its connection is given up, which takes far longer than
	// this test.
	let isSilent = false;
	await using host = await startTestDriverHost(await directoryOf(t), {
		onCall: () => (isSilent ? {when: 'before', action: 'freeze'} : undefined),
	});
	const running = await daemon(t, {LIBVIRT_URI: `test:///default?socket=${host.socketPath}`});
	await running.event('ready');
	await running.event('libvirt connected');
	isSilent = true;
	const client = new TtrpcClient(connect(running.socketPath));
	t.teardown(async () => client.close());
	const {StopVM, Version} = loadContract().hypervisor;
	const call = t.throwsAsync(client.call(StopVM as unknown as ClientMethod<object, object>, {id: 'a'}, {}, never));
	// Comes behind it, on the same connection.
	await client.call(Version as unknown as ClientMethod<object, object>, {version: ''}, {}, never);
	running.child.kill('SIGTERM');
	await running.event('stopping');
	running.child.kill('SIGINT');
	t.deepEqual(await running.exited, [130, null]);
	await call;
});

test('if libvirt is unreachable, only VMs are unavailable, and the log is not flooded', async t => {
	const running = await daemon(t, {LOG_LEVEL: 'debug'});
	await running.event('ready');
	t.deepEqual(await versionOver(running.socketPath), {version: '0.0.0'});
	await running.line('"attempt":3,');
	const told = running.lines
		.map(line => JSON.parse(line) as Line)
		.filter(({msg}) => msg === 'could not connect to libvirt')
		.slice(0, 3);
	t.deepEqual(
		told.map(({level}) => level),
		['warn', 'warn', 'debug'],
	);
	const pauses = told.map(({retryInMs}) => Number(retryInMs));
	t.true(
		(pauses[0] ?? 0) > 0 && (pauses[1] ?? 0) > (pauses[0] ?? 0) && (pauses[2] ?? 0) > (pauses[1] ?? 0),
		String(pauses),
	);
	running.child.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
});

test('LOG_FORMAT=pretty gives lines for a reader', async t => {
	const running = await daemon(t, {LOG_FORMAT: 'pretty'});
	const ready = await running.line('ready');
	t.false(ready.includes('{"level"'));
	t.regex(ready, /^\[\d\d:\d\d:\d\d\.\d+\].*INFO.*ready/);
	running.child.kill('SIGINT');
	t.deepEqual(await running.exited, [0, null]);
});

test('a reader that closes the pipe has no effect: no error message, and the same exit code', async t => {
	const outcome = async (words: string): Promise<string> => {
		// The pipe has no reader any more when the first word is written.
		const shell = spawn(
			'sh',
			[
				'-c',
				`{ trap "" PIPE; until ! printf x 2>/dev/null; do :; done; "$0" "$1" ${words}; printf %s $? >&2; } | true`,
				process.execPath,
				source,
			],
			{
				env: {PATH: process.env['PATH'], CLUSTER_ID: 'x', LIBVIRT_URI: 'test:///default?socket=/nonexistent'},
				stdio: ['ignore', 'ignore', 'pipe'],
			},
		);
		return text(shell.stderr);
	};

	t.is(await outcome('help'), '0');
	t.is(await outcome('check'), '1');
});

test('SIGUSR1 opens no inspector in the daemon', async t => {
	const running = await daemon(t, {});
	await running.event('ready');
	t.false((await caughtSignals(running.child.pid ?? 0)).includes('SIGUSR1'));
	running.child.kill('SIGUSR1');
	t.deepEqual(await versionOver(running.socketPath), {version: '0.0.0'});
	running.child.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
	t.notRegex(running.stderr, /Debugger/);
});

/** What `npm run build` makes, in another directory. */
async function compiled(t: ExecutionContext, directory: string): Promise<void> {
	// Types are lint's business.
	const compiler = spawn(
		process.execPath,
		[
			join(repository, 'node_modules/typescript/bin/tsc'),
			'-p',
			'tsconfig.build.json',
			'--noCheck',
			'--outDir',
			directory,
		],
		{cwd: repository, stdio: ['ignore', 'pipe', 'inherit']},
	);
	t.teardown(() => void compiler.kill('SIGKILL'));
	const [said, [code]] = await Promise.all([text(compiler.stdout), once(compiler, 'exit') as Promise<[number]>]);
	t.is(code, 0, said);
}

test('the built program works like the source: it finds package.json and the .proto files', async t => {
	const directory = await directoryOf(t);
	const built = join(directory, 'dist');
	await compiled(t, built);
	const files = (await readdir(built, {recursive: true})).filter(path => path.endsWith('.js'));
	const loadedLater = (
		await Promise.all(
			files.map(async file =>
				Array.from(
					(await readFile(join(built, file), 'utf8')).matchAll(/\bimport\(["'](\.[^"']+)/gv),
					([, path = '']) => join(dirname(file), path),
				),
			),
		)
	).flat();
	t.true(loadedLater.includes('api/grpc.js'));
	t.deepEqual(
		loadedLater.filter(path => !files.includes(path)),
		[],
	);
	// As in the image: dist beside package.json, proto and node_modules.
	await Promise.all(
		['package.json', 'proto'].map(async name =>
			cp(join(repository, name), join(directory, name), {recursive: true}),
		),
	);
	await symlink(join(repository, 'node_modules'), join(directory, 'node_modules'));
	const main = join(built, 'main.js');
	const version = new Process(t, ['version'], {}, main);
	t.deepEqual(await version.exited, [0, null]);
	t.regex(await version.stdout, /^cloud-api-adaptor \d/);
	const running = await daemon(t, {}, main);
	await running.event('ready');
	t.deepEqual(await versionOver(running.socketPath), {version: '0.0.0'});
	// gRPC is loaded with its first connection.
	t.deepEqual(await grpcCall(running.socketPath, loadContract().hypervisor['Version'], {version: ''}), {
		version: '0.0.0',
	});
	running.child.kill('SIGTERM');
	t.deepEqual(await running.exited, [0, null]);
});

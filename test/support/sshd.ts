/**
 * A real sshd on 127.0.0.1, in its own mount and process namespaces. Its `/run` is private, and its `/run/libvirt` is a
 * directory that the test fills. Killing it ends all its sessions and commands. It dies with the process of the test.
 */
import {execFile, spawn, type ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile} from 'node:fs/promises';
import {createInterface} from 'node:readline';
import {tmpdir} from 'node:os';
import {promisify} from 'node:util';
import {freePort} from './port.ts';

export const run = promisify(execFile);

export interface SshdOptions {
	/** Lines of sshd_config. They override the defaults, because sshd uses the first value of an option. */
	readonly config?: readonly string[];
	/** Options before the key in authorized_keys. */
	readonly keyOptions?: string;
	/** The directory of another sshd, whose host keys and user key are used. */
	readonly keysOf?: string;
	/** The types of the host keys. */
	readonly hostKeys?: readonly HostKeyType[];
	/** The commands in the PATH of sessions; all commands of the machine if absent. */
	readonly commands?: readonly string[];
}

export type HostKeyType = 'ed25519' | 'ecdsa' | 'rsa';

export interface Sshd extends AsyncDisposable {
	readonly host: '127.0.0.1';
	readonly port: number;
	/** Its files: `ssh_host_<type>_key(.pub)`, `user_key(.pub)`, `authorized_keys`. */
	readonly directory: string;
	/** A private key that may log in as root. */
	readonly userKey: string;
	/** The directory that is `/run/libvirt` in its sessions. */
	readonly runLibvirt: string;
	/** The line of known_hosts for its key of this type. */
	knownHostsLine(type: HostKeyType): Promise<string>;
	/** Its log so far. */
	log(): string;
	/** The processes that serve connections, and their children. */
	sessionPids(): Promise<readonly number[]>;
	/** Resolves when it serves no connection. */
	idle(): Promise<void>;
}

/** Requires root, for the namespaces and for logins as root. */
export async function startSshd(options: SshdOptions = {}): Promise<Sshd> {
	const directory = await mkdtemp(`${tmpdir()}/caat-sshd-`);
	await using undo = new AsyncDisposableStack();
	undo.defer(async () => rm(directory, {recursive: true, force: true}));
	const runLibvirt = `${directory}/libvirt`;
	await mkdir(runLibvirt);
	const types = options.hostKeys ?? ['ed25519', 'ecdsa', 'rsa'];
	await (options.keysOf === undefined ? makeKeys(directory, types) : copyKeys(options.keysOf, directory));
	await writeFile(
		`${directory}/authorized_keys`,
		`${options.keyOptions ?? ''} ${await readFile(`${directory}/user_key.pub`, 'utf8')}`.trimStart(),
	);
	const path =
		options.commands === undefined ? [] : [`SetEnv PATH=${await commandDirectory(directory, options.commands)}`];
	const configure = async (port: number): Promise<void> =>
		writeFile(
			`${directory}/sshd_config`,
			[
				...(options.config ?? []),
				...path,
				'ListenAddress 127.0.0.1',
				`Port ${port}`,
				...types.map(type => `HostKey ${directory}/ssh_host_${type}_key`),
				`AuthorizedKeysFile ${directory}/authorized_keys`,
				'PidFile none',
				'StrictModes no',
				'UsePAM no',
				'PermitRootLogin yes',
				'PasswordAuthentication no',
				'KbdInteractiveAuthentication no',
				'LogLevel VERBOSE',
				'MaxStartups 100',
				'',
			].join('\n'),
		);
	// With an empty home directory, so that no shell profile of this machine delays commands or prints text.
	const script =
		'mount -t tmpfs none /root && mount -t tmpfs none /run && mkdir /run/sshd && ln -s "$0"/libvirt /run/libvirt && exec /usr/sbin/sshd -D -e -f "$0"/sshd_config';
	let log = '';
	/** The process, or undefined if another program has taken the port in the meantime. */
	const begin = async (): Promise<ChildProcess | undefined> => {
		const child = spawn(
			'setpriv',
			[
				'--pdeathsig',
				'KILL',
				'unshare',
				'--mount',
				'--pid',
				'--fork',
				'--kill-child',
				'sh',
				'-c',
				script,
				directory,
			],
			{stdio: ['ignore', 'ignore', 'pipe']},
		);
		const exited = once(child, 'exit');
		undo.defer(async () => {
			child.kill('SIGKILL');
			await exited;
		});
		const listening = Promise.withResolvers<boolean>();
		log = '';
		createInterface({input: child.stderr}).on('line', line => {
			log += `${line}\n`;
			if (line.startsWith('Server listening on')) {
				listening.resolve(true);
			}
		});
		// `close`, not `exit`: all output has been read by then.
		child.once('close', () => {
			if (/Address already in use/.test(log)) {
				listening.resolve(false);
			} else {
				listening.reject(new Error(`sshd did not start: ${log}`));
			}
		});
		return (await listening.promise) ? child : undefined;
	};

	let port: number;
	let child: ChildProcess | undefined;
	do {
		port = await freePort();
		await configure(port);
		child = await begin();
	} while (child === undefined);

	const owned = undo.move();
	const {pid} = child;
	const sessionPids = async (): Promise<readonly number[]> => (await descendants(pid ?? 0)).slice(1);
	return {
		host: '127.0.0.1',
		port,
		directory,
		runLibvirt,
		userKey: `${directory}/user_key`,
		knownHostsLine: async type =>
			`[127.0.0.1]:${port} ${(await readFile(`${directory}/ssh_host_${type}_key.pub`, 'utf8')).split(' ').slice(0, 2).join(' ')}\n`,
		log: () => log,
		sessionPids,
		// Only the parent of a process is notified of its end, so this checks on every turn of the event loop.
		async idle() {
			const giveUpAt = performance.now() + 60_000;
			for (let pids = await sessionPids(); pids.length > 0; pids = await sessionPids()) {
				if (performance.now() > giveUpAt) {
					throw new Error(`sshd still serves connections, with the processes ${pids.join()}: ${log}`);
				}

				await new Promise(setImmediate);
			}
		},
		[Symbol.asyncDispose]: async () => owned.disposeAsync(),
	};
}

async function makeKeys(directory: string, types: readonly HostKeyType[]): Promise<void> {
	const make = async (type: HostKeyType, file: string): Promise<unknown> =>
		run('ssh-keygen', [
			'-q',
			'-t',
			type,
			...(type === 'rsa' ? ['-b', '2048'] : []),
			'-N',
			'',
			'-C',
			'test',
			'-f',
			`${directory}/${file}`,
		]);
	await Promise.all([make('ed25519', 'user_key'), ...types.map(async type => make(type, `ssh_host_${type}_key`))]);
}

async function copyKeys(from: string, to: string): Promise<void> {
	for (const name of await readdir(from)) {
		if (/_key(\.pub)?$/.test(name)) {
			await cp(`${from}/${name}`, `${to}/${name}`);
		}
	}
}

async function commandDirectory(directory: string, commands: readonly string[]): Promise<string> {
	const path = `${directory}/bin`;
	await mkdir(path);
	for (const command of commands) {
		const {stdout} = await run('sh', ['-c', 'command -v "$0"', command]);
		await run('ln', ['-s', stdout.trim(), `${path}/${command}`]);
	}

	return path;
}

/** Running descendants of `pid`, by generation. */
async function descendants(pid: number): Promise<readonly number[]> {
	const parents = new Map<number, number>();
	for (const name of await readdir('/proc')) {
		if (/^\d+$/.test(name)) {
			const stat = await readFile(`/proc/${name}/stat`, 'latin1').catch(() => '');
			const [, state, parent] = /\) (\S) (\d+)/.exec(stat) ?? [];
			if (state !== undefined && state !== 'Z') {
				parents.set(Number(name), Number(parent));
			}
		}
	}

	const found: number[] = [];
	for (let generation = [pid]; generation.length > 0;) {
		generation = [...parents].filter(([, parent]) => generation.includes(parent)).map(([child]) => child);
		found.push(...generation);
	}

	return found;
}

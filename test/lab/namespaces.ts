/**
 * A process tree in its own mount, PID and network namespaces. Nothing can be left over: PID 1 of the tree ends
 * whenever this process ends, and the kernel then removes the namespaces with their mounts, devices and files. Two
 * mechanisms together leave no gap: the standard input of init.sh, which then ends, and a parent-death signal. Does not
 * know libvirt or the topology.
 */
import {spawn, type ChildProcess, type SpawnOptions} from 'node:child_process';
import {closeSync, constants, openSync} from 'node:fs';
import {once} from 'node:events';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import {AdaptorError, toError} from '../../src/core/errors.ts';
import {abortable, Scope} from '../../src/core/lifetime.ts';
import {Service} from './service.ts';

const init = fileURLToPath(new URL('init.sh', import.meta.url));

/** The default environment of programs in the lab: nothing from the environment of the caller. */
export const environment = {
	PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
	HOME: '/run/lab/home',
	LANG: 'C.UTF-8',
};

export interface RunOptions {
	/** Added to `environment`. */
	readonly env?: Readonly<Record<string, string>>;
	/** An absolute path in the lab; `/` by default. */
	readonly cwd?: string;
	readonly stdio?: SpawnOptions['stdio'];
}

export class Namespaces implements AsyncDisposable {
	/** `unshare` itself: it is in the new mount namespace, and its children are in the new PID namespace. */
	readonly #holder: Service;
	/** Id of the holder, for tests that watch it end. */
	readonly pid: number;
	readonly #rootFd: number;
	/** Running programs that `run` started. */
	readonly #running = new Set<ChildProcess>();
	#disposed: Promise<void> | undefined;

	private constructor(holder: Service, pid: number) {
		this.#holder = holder;
		this.pid = pid;
		this.#rootFd = openSync(`/proc/${pid}/root`, constants.O_RDONLY | constants.O_DIRECTORY);
	}

	/** @throws 'failed-precondition' if the machine does not allow it */
	static async create(signal: AbortSignal): Promise<Namespaces> {
		const child = spawn(
			'setpriv',
			[
				'--pdeathsig',
				'KILL',
				'--',
				'unshare',
				'--mount',
				'--net',
				'--pid',
				'--fork',
				'--mount-proc',
				'--kill-child',
				'--',
				'tini',
				'--',
				'sh',
				init,
			],
			{
				env: environment,
				stdio: ['pipe', 'ignore', 'pipe'],
				// Its own process group: Ctrl-C in a terminal only reaches this process, which then ends the lab in
				// order.
				detached: true,
			},
		);
		child.stdin.on('error', () => undefined); // The program may end before all input is written.
		const holder = new Service("the lab's first process", child, () => child.stdin.end());
		try {
			using scope = new Scope(signal).deadline(120_000, "the lab's namespaces");
			await holder.line(/^ready$/, scope.signal);
			return new Namespaces(holder, child.pid ?? 0);
		} catch (error) {
			holder.kill('SIGKILL');
			signal.throwIfAborted();
			throw new AdaptorError({
				code: 'failed-precondition',
				what: `Could not create the namespaces of the lab: ${holder.tail.join('; ') || toError(error).message}`,
				remedy: 'Run as root with all capabilities (a container needs --privileged). "sh test/lab/setup.sh" installs missing programs.',
				cause: error,
			});
		}
	}

	/**
	 * Converts a path in the lab to one that this process (and no other) can open, also for unix sockets. `/dev/fd` is
	 * the shortest form: the path of a socket is limited to 107 bytes, and that of an agent socket contains a sandbox
	 * id.
	 */
	outside(path: string): string {
		return `/dev/fd/${this.#rootFd}${path}`;
	}

	/**
	 * Starts a program under tini, which forwards signals (nsenter would not) and exits with 128 + n if signal n ended
	 * the program. If tini is killed, so is the program.
	 * @param netns name of a network namespace in the lab
	 */
	run(netns: string, argv: readonly string[], {env = {}, cwd = '/', stdio = 'pipe'}: RunOptions = {}): ChildProcess {
		const of = `/proc/${this.pid}`;
		const child = spawn(
			'nsenter',
			[
				`--mount=${of}/ns/mnt`,
				`--root=${of}/root`,
				`--pid=${of}/ns/pid_for_children`,
				`--net=${of}/root/run/netns/${netns}`,
				`--wdns=${cwd}`,
				'--no-fork',
				'--',
				'tini',
				'-s',
				'-p',
				'SIGKILL',
				'--',
				'setpriv',
				'--pdeathsig',
				'KILL',
				'--',
				...argv,
			],
			{env: {...environment, ...env}, stdio, detached: true},
		);
		this.#running.add(child);
		child.once('exit', () => this.#running.delete(child));
		child.once('error', () => this.#running.delete(child));
		return child;
	}

	/**
	 * Runs a program to its end and returns its output.
	 * @throws 'internal' with its standard error if it fails
	 */
	async exec(netns: string, argv: readonly string[], signal: AbortSignal): Promise<string> {
		const child = this.run(netns, argv, {stdio: ['ignore', 'pipe', 'pipe']});
		if (child.stdout === null || child.stderr === null) {
			throw new TypeError('stdio are pipes');
		}

		try {
			const ended = once(child, 'close');
			const [stdout, stderr] = await abortable(
				Promise.all([text(child.stdout), text(child.stderr), ended]),
				signal,
			);
			if (child.exitCode !== 0) {
				throw new AdaptorError({
					code: 'internal',
					what: `${argv.join(' ')} failed: ${stderr.trim()}`,
					where: {netns, status: child.exitCode ?? -1},
				});
			}

			return stdout;
		} finally {
			child.kill('SIGKILL');
		}
	}

	/** Ends all processes in it and waits until they are gone. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#disposed ??= this.#dispose();
		await this.#disposed;
	}

	async #dispose(): Promise<void> {
		closeSync(this.#rootFd);
		await this.#holder.stop(5000);
		await Promise.all([...this.#running].map(async child => once(child, 'exit')));
	}
}

/**
 * A process tree in mount, PID and network namespaces of its own, from which nothing can be left over: its PID 1 ends
 * when this process ends, however that happens, and with its last process the kernel takes the namespaces with their
 * mounts, devices and files. Two things hold it, so that no moment is without: standard input of init.sh ends, and a
 * parent-death signal. Knows neither libvirt nor the topology.
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

/** What programs in the lab see, unless told otherwise: nothing of the caller's environment. */
export const environment = {
	PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
	HOME: '/run/lab/home',
	LANG: 'C.UTF-8',
};

export interface RunOptions {
	/** Added to `environment`. */
	readonly env?: Readonly<Record<string, string>>;
	/** Absolute, as seen in the lab; `/` unless given. */
	readonly cwd?: string;
	readonly stdio?: SpawnOptions['stdio'];
}

export class Namespaces implements AsyncDisposable {
	/** `unshare` itself: it is in the new mount namespace and has the new PID namespace as that of its children. */
	readonly #holder: Service;
	/** Of the holder, for those who watch it end. */
	readonly pid: number;
	readonly #rootFd: number;
	/** Programs that `run` started and that have not ended yet. */
	readonly #running = new Set<ChildProcess>();
	#disposed: Promise<void> | undefined;

	private constructor(holder: Service, pid: number) {
		this.#holder = holder;
		this.pid = pid;
		this.#rootFd = openSync(`/proc/${pid}/root`, constants.O_RDONLY | constants.O_DIRECTORY);
	}

	/** @throws 'failed-precondition' when the machine does not allow it */
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
				// A process group of its own: Ctrl-C in the terminal reaches us alone, and we end things in order.
				detached: true,
			},
		);
		child.stdin.on('error', () => undefined); // it may end before its input does
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
				what: `Could not make namespaces for the lab: ${holder.tail.join('; ') || toError(error).message}`,
				remedy: 'Run as root with all capabilities (a container needs --privileged). "sh test/lab/setup.sh" installs missing programs.',
				cause: error,
			});
		}
	}

	/**
	 * A file in the lab as this process (only this one) can open it; unix sockets too. `/dev/fd` because it is the
	 * shortest way in: a socket's path may have 107 bytes, and the agent's has a sandbox id in it.
	 */
	outside(path: string): string {
		return `/dev/fd/${this.#rootFd}${path}`;
	}

	/**
	 * Starts a program. tini hands signals on to it (nsenter would not), ends with 128 + n when signal n ended it, and
	 * when tini is killed so is the program.
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
	 * Runs a program to its end and returns what it printed.
	 * @throws 'internal' with what it said on standard error when it fails
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

	/** Ends every process in it and waits until they are gone. */
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

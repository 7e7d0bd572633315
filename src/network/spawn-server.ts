/**
 * Runs programs through a few long-lived shells. `spawn()` blocks the event loop in proportion to the memory of the
 * calling process (1 ms at 40 MB, 14 ms at 300 MB). So the shells are started early, while the process is small; a
 * shell forks in constant time. Knows nothing about networks.
 *
 * Each shell reads a script from its standard input, one command at a time, and prints a mark on both outputs after
 * each command. A shell ends when this process closes the pipe or dies: then it starts no further command, and a
 * running command completes.
 */
import {spawn, type ChildProcessByStdio} from 'node:child_process';
import {randomUUID} from 'node:crypto';
import {kill} from 'node:process';
import type {Readable, Writable} from 'node:stream';
import {Semaphore} from '../core/concurrency/semaphore.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {quoted} from '../core/shell.ts';

export interface Command {
	/** Program and arguments, passed unchanged: no expansion, no word splitting. */
	readonly argv: readonly string[];
	/** Text for its standard input; empty if absent. */
	readonly stdin?: string;
}

export interface CommandResult {
	/** 127: the program does not exist; 128 + n: ended by signal n. */
	readonly status: number;
	readonly stdout: string;
	readonly stderr: string;
}

export interface SpawnServerOptions {
	/** The shell with its arguments; it must read its script from standard input. */
	readonly shell?: readonly string[];
	/** Maximum number of concurrent commands; others wait. */
	readonly size?: number;
	/** Time limit of a started command. */
	readonly timeoutMs?: number;
	/** Maximum number of characters per output; a command that prints more is killed. */
	readonly maxOutput?: number;
}

/** A shell that does not end within this time is killed. */
const patienceMs = 2000;

/** The complete environment of the shells, with English messages. */
const environment = {PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C'};

export class SpawnServer implements AsyncDisposable {
	readonly #shell: readonly string[];
	readonly #limits: Limits;
	readonly #shells = new Set<Shell>();
	readonly #running: Semaphore;
	/** Commands that were accepted and have not ended. */
	readonly #accepted = new Set<Promise<unknown>>();
	#disposed: Promise<void> | undefined;

	constructor({shell = ['/bin/sh'], size = 4, timeoutMs = 10_000, maxOutput = 4 << 20}: SpawnServerOptions = {}) {
		this.#shell = shell;
		this.#limits = {timeoutMs, maxOutput};
		this.#running = new Semaphore(size);
		while (this.#shells.size < size) {
			this.#start();
		}
	}

	/**
	 * Runs a command to its end and returns any status. On abort or timeout, the command is killed before the
	 * rejection.
	 * @throws the reason of the signal; 'deadline-exceeded'; 'resource-exhausted' for too much output; 'unavailable' if
	 * its shell died
	 */
	async run(command: Command, signal: AbortSignal): Promise<CommandResult> {
		if (this.#disposed !== undefined && !signal.aborted) {
			throw new AdaptorError({code: 'unavailable', what: `Could not run ${nameOf(command)}: shutting down`});
		}

		const result = this.#run(command, signal);
		this.#accepted.add(result);
		try {
			return await result;
		} finally {
			this.#accepted.delete(result);
		}
	}

	/** Refuses new commands, completes accepted ones, then ends the shells. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#disposed ??= this.#drain();
		await this.#disposed;
	}

	async #drain(): Promise<void> {
		await Promise.allSettled(this.#accepted);
		await Promise.all(Array.from(this.#shells, async shell => shell.end()));
	}

	async #run(command: Command, signal: AbortSignal): Promise<CommandResult> {
		using _permit = await this.#running.acquire(signal);
		const shell = this.#shells.values().find(({isFree}) => isFree) ?? this.#start();
		return await shell.run(command, signal);
	}

	/** @throws 'unavailable' */
	#start(): Shell {
		let shell: Shell;
		try {
			shell = new Shell(this.#shell, this.#limits);
		} catch (error) {
			throw new AdaptorError({code: 'unavailable', what: 'Could not start a shell', cause: error});
		}

		this.#shells.add(shell);
		void shell.ended.then(() => this.#shells.delete(shell));
		return shell;
	}
}

interface Limits {
	readonly timeoutMs: number;
	readonly maxOutput: number;
}

/**
 * One shell, which runs one command at a time. It is not reused after a command was killed, because a late signal could
 * hit the next one.
 */
class Shell {
	readonly ended: Promise<void>;
	readonly #limits: Limits;
	readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
	/** Marks the end of a command. Random and unknown to the command, so no output contains it. */
	readonly #mark = randomUUID();
	readonly #stdout: Output;
	readonly #stderr: Output;
	#isBusy = false;
	#isRetired = false;

	constructor([file = '', ...args]: readonly string[], limits: Limits) {
		this.#limits = limits;
		// Its own process group: Ctrl-C in a terminal only reaches this process, which then ends the shells in order.
		this.#child = spawn(file, args, {cwd: '/', env: environment, stdio: 'pipe', detached: true});
		this.#child.stdin.on('error', () => undefined); // The shell died: `ended` handles it.
		const {promise, resolve} = Promise.withResolvers<undefined>();
		this.ended = promise;
		const onEnd = (): void => {
			this.#isRetired = true;
			// A program that outlives its shell and keeps the outputs open must not block this process.
			this.#child.stdout.destroy();
			this.#child.stderr.destroy();
			resolve(undefined);
		};
		this.#child.once('exit', onEnd).once('error', onEnd);
		this.#stdout = new Output(this.#child.stdout, `\n${this.#mark}`);
		this.#stderr = new Output(this.#child.stderr, `\n${this.#mark}`);
		// On SIGTERM: kill the command, also one that is just being started.
		this.#child.stdin.write('p= k=; trap \'k=1; [ -z "$p" ] || kill -KILL "$p"\' TERM\n');
	}

	get isFree(): boolean {
		return !this.#isBusy && !this.#isRetired;
	}

	/** The shell must be free. */
	async run(command: Command, signal: AbortSignal): Promise<CommandResult> {
		this.#isBusy = true;
		try {
			return await this.#run(command, signal);
		} finally {
			this.#isBusy = false;
		}
	}

	/** Closes its input and waits until it ends; kills it after a time limit. */
	async end(): Promise<void> {
		this.#isRetired = true;
		this.#child.stdin.end();
		await this.#orKill();
	}

	async #run(command: Command, signal: AbortSignal): Promise<CommandResult> {
		const script = this.#script(command);
		using scope = new Scope(signal).deadline(this.#limits.timeoutMs, nameOf(command));
		const {promise: overflow, resolve: onOverflow} = Promise.withResolvers<'overflow'>();
		const outputs = Promise.all(
			[this.#stdout, this.#stderr].map(async output =>
				output.read(this.#limits.maxOutput, () => onOverflow('overflow')),
			),
		);
		const {promise: aborted, resolve: onAbort} = Promise.withResolvers<'aborted'>();
		scope.signal.addEventListener('abort', () => onAbort('aborted'), {once: true});
		this.#child.stdin.write(script);
		const outcome = await Promise.race([outputs, overflow, aborted, this.ended.then(() => 'died' as const)]);
		if (Array.isArray(outcome)) {
			const [stdout = {text: '', tail: ''}, stderr = {text: '', tail: ''}] = outcome;
			return {stdout: stdout.text, stderr: stderr.text, status: Number(stdout.tail)};
		}

		await this.#retire();
		if (outcome === 'aborted') {
			throw toError(scope.signal.reason);
		}

		throw outcome === 'overflow'
			? new AdaptorError({
					code: 'resource-exhausted',
					what: `${nameOf(command)} printed more than ${this.#limits.maxOutput} characters`,
				})
			: new AdaptorError({
					code: 'unavailable',
					what: `Could not run ${nameOf(command)}: the shell that runs commands ended`,
					remedy: 'A retry starts a new shell.',
				});
	}

	/** Kills the command, and waits until it and the shell have ended. */
	async #retire(): Promise<void> {
		this.#isRetired = true;
		this.#child.stdin.end();
		this.#child.kill('SIGTERM');
		await this.#orKill();
	}

	async #orKill(): Promise<void> {
		const {pid} = this.#child;
		// Kill the whole process group: a command must not survive because its shell got no CPU time to kill it.
		const timer = setTimeout(() => pid !== undefined && kill(-pid, 'SIGKILL'), patienceMs);
		await this.ended;
		clearTimeout(timer);
	}

	/**
	 * The command runs in the background, so that the shell can wait and handle signals. `wait` is repeated because a
	 * signal interrupts it.
	 */
	#script({argv, stdin = ''}: Command): string {
		if (stdin.includes('\0') || stdin.includes(this.#mark)) {
			throw new TypeError('The input contains bytes that a shell cannot pass on');
		}

		const line = stdin === '' || stdin.endsWith('\n') ? '' : '\n';
		return [
			`${argv.map(quoted).join(' ')} <<'${this.#mark}' &\n${stdin}${line}${this.#mark}\n`,
			'p=$!; [ -z "$k" ] || kill -KILL "$p"; wait "$p"; s=$?; [ -z "$k" ] || wait "$p"; p=\n',
			`printf '\\n%s %d\\n' '${this.#mark}' "$s"; printf '\\n%s \\n' '${this.#mark}' >&2\n`,
		].join('');
	}
}

/** The output before a mark, and the rest of the line after the mark. */
interface Marked {
	readonly text: string;
	readonly tail: string;
}

/** Maximum length of the rest of a line after a mark: a space and a status. */
const maxTail = 16;

class Output {
	readonly #mark: string;
	#text = '';
	#onText: (added: number) => void = () => undefined;

	constructor(stream: Readable, mark: string) {
		this.#mark = mark;
		stream.on('error', () => undefined); // `ended` of the shell handles it.
		stream.setEncoding('utf8').on('data', (chunk: string) => {
			this.#text += chunk;
			this.#onText(chunk.length);
		});
	}

	/** Never settles if the stream ends first; the end of the shell is handled elsewhere. */
	async read(limit: number, onOverflow: () => void): Promise<Marked> {
		const {promise, resolve} = Promise.withResolvers<Marked>();
		this.#onText = added => {
			const start = this.#text.indexOf(
				this.#mark,
				Math.max(0, this.#text.length - added - this.#mark.length - maxTail),
			);
			const end = start === -1 ? -1 : this.#text.indexOf('\n', start + this.#mark.length);
			if (end !== -1) {
				const marked = {
					text: this.#text.slice(0, start),
					tail: this.#text.slice(start + this.#mark.length, end),
				};
				this.#text = '';
				this.#onText = () => undefined;
				resolve(marked);
			} else if (start === -1 && this.#text.length > limit) {
				this.#text = '';
				onOverflow();
			}
		};
		return promise;
	}
}

/** The name of the command in messages, without its input. */
function nameOf({argv}: Command): string {
	return `"${argv.join(' ')}"`;
}

/**
 * Runs programs through a few long-lived shells. The only place that starts processes: `spawn()` blocks the event loop
 * in proportion to the memory of the process that calls it (1 ms at 40 MB, 14 ms at 300 MB), so it is called early,
 * while we are small; a shell forks in constant time. Knows nothing of networks.
 *
 * Each shell reads a script from its standard input, one command at a time, and tells its end by a mark on both
 * outputs. It ends when our end of that pipe closes, however we end: then nothing further is started, and what runs
 * comes to its own end.
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
	/** Program and arguments, passed on as they are: no expansion, no word splitting. */
	readonly argv: readonly string[];
	/** Text for its standard input; empty when absent. */
	readonly stdin?: string;
}

export interface CommandResult {
	/** 127: no such program; 128 + n: ended by signal n. */
	readonly status: number;
	readonly stdout: string;
	readonly stderr: string;
}

export interface SpawnServerOptions {
	/** The shell with its arguments; it has to read its script from standard input. */
	readonly shell?: readonly string[];
	/** How many commands run at the same time; the others wait. */
	readonly size?: number;
	/** How long a command may run once it is started. */
	readonly timeoutMs?: number;
	/** Characters of either output; a command that prints more is ended. */
	readonly maxOutput?: number;
}

/** Of a shell that was asked to end, before it is killed. */
const patienceMs = 2000;

/** The shells' whole environment: nothing of ours, messages in English. */
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
	 * Runs a command to its end; a status other than 0 is a result too. On abort or time-out the command is killed
	 * first, so that nothing of it happens after the rejection.
	 * @throws the signal's reason; 'deadline-exceeded'; 'resource-exhausted' for too much output; 'unavailable' when
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

	/** Takes no more commands, lets the accepted ones finish, ends the shells. */
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
 * One shell, one command at a time. After a command had to be killed it is not used again: a late signal could hit the
 * next one.
 */
class Shell {
	readonly ended: Promise<void>;
	readonly #limits: Limits;
	readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
	/** Tells a command's end. Random, and never passed to a command, so no output contains it. */
	readonly #mark = randomUUID();
	readonly #stdout: Output;
	readonly #stderr: Output;
	#isBusy = false;
	#isRetired = false;

	constructor([file = '', ...args]: readonly string[], limits: Limits) {
		this.#limits = limits;
		// A process group of its own: Ctrl-C in a terminal reaches us alone, and we end things in order.
		this.#child = spawn(file, args, {cwd: '/', env: environment, stdio: 'pipe', detached: true});
		this.#child.stdin.on('error', () => undefined); // it died; `ended` tells
		const {promise, resolve} = Promise.withResolvers<undefined>();
		this.ended = promise;
		const onEnd = (): void => {
			this.#isRetired = true;
			// A program that outlives its shell and holds on to them must not hold us.
			this.#child.stdout.destroy();
			this.#child.stderr.destroy();
			resolve(undefined);
		};
		this.#child.once('exit', onEnd).once('error', onEnd);
		this.#stdout = new Output(this.#child.stdout, `\n${this.#mark}`);
		this.#stderr = new Output(this.#child.stderr, `\n${this.#mark}`);
		// On SIGTERM: end the command, also one that is just being started.
		this.#child.stdin.write('p= k=; trap \'k=1; [ -z "$p" ] || kill -KILL "$p"\' TERM\n');
	}

	get isFree(): boolean {
		return !this.#isBusy && !this.#isRetired;
	}

	/** Only on a free shell. */
	async run(command: Command, signal: AbortSignal): Promise<CommandResult> {
		this.#isBusy = true;
		try {
			return await this.#run(command, signal);
		} finally {
			this.#isBusy = false;
		}
	}

	/** Closes its input and waits until it is gone; kills it when it does not go. */
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
					remedy: 'Trying again starts another.',
				});
	}

	/** Has the command killed, and waits until it and the shell are gone. */
	async #retire(): Promise<void> {
		this.#isRetired = true;
		this.#child.stdin.end();
		this.#child.kill('SIGTERM');
		await this.#orKill();
	}

	async #orKill(): Promise<void> {
		const {pid} = this.#child;
		// With all that it started: a command must not live on because its shell got no processor time to end it.
		const timer = setTimeout(() => pid !== undefined && kill(-pid, 'SIGKILL'), patienceMs);
		await this.ended;
		clearTimeout(timer);
	}

	/**
	 * In the background, so that the shell can wait and take signals; `wait` is repeated because a signal ends it
	 * early.
	 */
	#script({argv, stdin = ''}: Command): string {
		if (stdin.includes('\0') || stdin.includes(this.#mark)) {
			throw new TypeError('Input that a shell cannot hand on');
		}

		const line = stdin === '' || stdin.endsWith('\n') ? '' : '\n';
		return [
			`${argv.map(quoted).join(' ')} <<'${this.#mark}' &\n${stdin}${line}${this.#mark}\n`,
			'p=$!; [ -z "$k" ] || kill -KILL "$p"; wait "$p"; s=$?; [ -z "$k" ] || wait "$p"; p=\n',
			`printf '\\n%s %d\\n' '${this.#mark}' "$s"; printf '\\n%s \\n' '${this.#mark}' >&2\n`,
		].join('');
	}
}

/** What comes before a mark, and what follows the mark up to the end of its line. */
interface Marked {
	readonly text: string;
	readonly tail: string;
}

/** What follows a mark: a space, a status, and room. */
const maxTail = 16;

class Output {
	readonly #mark: string;
	#text = '';
	#onText: (added: number) => void = () => undefined;

	constructor(stream: Readable, mark: string) {
		this.#mark = mark;
		stream.on('error', () => undefined); // the shell's end tells
		stream.setEncoding('utf8').on('data', (chunk: string) => {
			this.#text += chunk;
			this.#onText(chunk.length);
		});
	}

	/** Never settles when the stream ends first: the shell's end tells. */
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

/** As messages tell it: without input. */
function nameOf({argv}: Command): string {
	return `"${argv.join(' ')}"`;
}

/** A long-running program. Keeps the end of its standard error, to explain failures. Does not know the lab. */
import type {ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {createInterface} from 'node:readline';
import {AdaptorError} from '../../src/core/errors.ts';
import {abortable, DeadlineError, Scope} from '../../src/core/lifetime.ts';

/** More lines than a daemon prints while a waiting test is delayed. */
const keptLines = 5000;

export class Service implements AsyncDisposable {
	readonly name: string;
	readonly #child: ChildProcess;
	readonly #askToEnd: () => void;
	readonly #lines: string[] = [];
	readonly #waiting = new Set<(line: string) => void>();
	/** Resolves with the exit status when the program has ended; 128 + n if signal n ended it. */
	readonly ended: Promise<number>;

	/**
	 * @param child with standard error as a pipe
	 * @param askToEnd requests the end; SIGTERM by default
	 */
	constructor(name: string, child: ChildProcess, askToEnd = (): void => this.kill('SIGTERM')) {
		this.name = name;
		this.#child = child;
		this.#askToEnd = askToEnd;
		this.ended = exitOf(child);
		if (child.stderr !== null) {
			createInterface({input: child.stderr}).on('line', line => this.#take(line));
		}
	}

	/** The last lines of standard error. */
	get tail(): readonly string[] {
		return this.#lines;
	}

	/**
	 * The first matching line of standard error, past or future.
	 * @throws 'failed-precondition' with its last lines if it ends before
	 */
	async line(pattern: RegExp, signal: AbortSignal): Promise<string> {
		const seen = this.#lines.find(line => pattern.test(line));
		if (seen !== undefined) {
			return seen;
		}

		const {promise, resolve} = Promise.withResolvers<string>();
		const take = (line: string): void => {
			if (pattern.test(line)) {
				resolve(line);
			}
		};
		this.#waiting.add(take);
		try {
			return await abortable(Promise.race([promise, this.endedTooSoon()]), signal);
		} finally {
			this.#waiting.delete(take);
		}
	}

	/** Rejects when it has ended, with its last lines, for use in `Promise.race`. */
	async endedTooSoon(): Promise<never> {
		const status = await this.ended;
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `${this.name} ended unexpectedly`,
			where: {status},
			remedy: `Its last lines:\n${this.#lines.slice(-20).join('\n')}`,
		});
	}

	/** Requests the end, and kills it after `graceMs`. Resolves with its exit status. */
	async stop(graceMs = 30_000): Promise<number> {
		this.#askToEnd();
		using grace = new Scope().deadline(graceMs, `${this.name} to end`);
		try {
			return await abortable(this.ended, grace.signal);
		} catch (error) {
			if (!(error instanceof DeadlineError)) {
				throw error;
			}

			this.kill('SIGKILL');
			return await this.ended;
		}
	}

	kill(signal: NodeJS.Signals): void {
		this.#child.kill(signal);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.stop();
	}

	#take(line: string): void {
		this.#lines.push(line);
		if (this.#lines.length > keptLines) {
			this.#lines.shift();
		}

		for (const take of this.#waiting) {
			take(line);
		}
	}
}

async function exitOf(child: ChildProcess): Promise<number> {
	try {
		// 'close', not 'exit': all output has been read by then.
		const [status] = (await once(child, 'close')) as [number | null];
		return status ?? 128;
	} catch {
		return 127; // It could not be started: 'error' was emitted before.
	}
}

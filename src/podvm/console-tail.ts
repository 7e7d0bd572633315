/**
 * The newest console output of a guest: read during boot for the error of a failed start, and later while an operator
 * reads it. A console that cannot be read, for example because another program has opened it, has no effect on the
 * start. The output is untrusted: `lines` are harmless, `after` returns it as it is.
 */
import {Change} from '../core/concurrency/change.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import type {Domain} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';

/**
 * Bytes. If a guest prints more than `read` during boot, the rest is not read, because its output shares a connection
 * with all calls. `lines` are taken from the newest `searched`.
 */
const limits = {kept: 64 * 1024, searched: 4096, read: 1024 * 1024};
/** An operator's console is closed when nobody has read it for this time. */
const idleMs = 15_000;

const shown = {lines: 10, lineLength: 160};

/** How long to wait for the last console output after the VM has ended. */
const restMs = 300;

export interface ConsoleOutput {
	/** As the guest wrote it. */
	readonly output: Buffer;
	/** Number of bytes since the console was first read. */
	readonly position: number;
}

export class ConsoleTail {
	#tail = Buffer.alloc(0);
	#total = 0;
	readonly #added = new Change();
	#reading: Promise<void> = Promise.resolve();
	/** Set while the console is read. */
	#follower: Scope | undefined;
	/** The follower that ends when nobody reads. */
	#onDemand: Scope | undefined;
	#idle: NodeJS.Timeout | undefined;

	/** Reads in the background until the result is disposed, which closes the console. */
	follow(session: LibvirtCalls, domain: Domain, log: Logger): Disposable {
		const scope = this.#begin(session, domain, limits.read, error =>
			log.debug({instanceName: domain.name, err: error}, 'console of the pod VM cannot be read'),
		);
		return {[Symbol.dispose]: () => scope.abort(new Error('The console is not read any more'))};
	}

	/**
	 * The output after the position, or what is kept of it. Waits until there is some; opens the console if it is not
	 * being read, and closes it some time after the last call.
	 * @throws the error of the console, if it cannot be opened; the reason of the signal
	 */
	async after(position: number, session: LibvirtCalls, domain: Domain, signal: AbortSignal): Promise<ConsoleOutput> {
		using scope = new Scope(signal);
		if (position >= this.#total) {
			if (this.#follower === undefined) {
				this.#onDemand = this.#begin(session, domain, Infinity, error => scope.abort(error));
			}

			clearTimeout(this.#idle);
			this.#idle = setTimeout(
				() => this.#onDemand?.abort(new Error('Nobody reads the console any more')),
				idleMs,
			).unref();
			await this.#added.next(scope.signal);
		}

		const from = Math.max(0, this.#tail.length - (this.#total - position));
		return {output: this.#tail.subarray(from), position: this.#total};
	}

	/** Call it when the VM has ended. Resolves when all its output was read, or after a short time. */
	async rest(): Promise<void> {
		using scope = new Scope().deadline(restMs, 'the end of the console');
		await abortable(this.#reading, scope.signal).catch(() => undefined);
	}

	/**
	 * The last lines, oldest first, without unprintable characters and without the stack frames of a panic: the lines
	 * before them explain more.
	 */
	lines(): readonly string[] {
		return (
			this.#tail
				.subarray(-limits.searched)
				.toString()
				// ECMA-48, 5.4: control sequences, mostly colours.
				.replaceAll(/\u001B\[[0-?]*[ -/]*[@-~]/g, '')
				.split(/[\r\n]+/)
				.map(line =>
					line
						.replaceAll(/[\p{C}\p{Zl}\p{Zp}\uFFFD]+/gu, ' ')
						.trim()
						.slice(0, shown.lineLength),
				)
				.filter(line => line !== '' && !/\[<[\da-f]{16}>\]/.test(line))
				.slice(-shown.lines)
		);
	}

	#begin(session: LibvirtCalls, domain: Domain, mostBytes: number, onError: (error: unknown) => void): Scope {
		this.#follower?.abort(new Error('Another reader follows'));
		const scope = new Scope();
		this.#follower = scope;
		this.#reading = this.#read(session, domain, mostBytes, scope.signal)
			.catch((error: unknown) => {
				if (!scope.signal.aborted) {
					onError(error);
				}
			})
			.finally(() => {
				if (this.#follower === scope) {
					this.#follower = undefined;
				}
			});
		return scope;
	}

	async #read(session: LibvirtCalls, domain: Domain, mostBytes: number, signal: AbortSignal): Promise<void> {
		let count = 0;
		for await (const output of session.console(domain, signal)) {
			this.#tail = Buffer.concat([this.#tail, output]).subarray(-limits.kept);
			this.#total += output.length;
			this.#added.tell();
			count += output.length;
			if (count > mostBytes) {
				return;
			}
		}
	}
}

/**
 * The last lines that a guest printed on its console during boot, for the error of a failed start. A console that
 * cannot be read, for example because another program has opened it, has no effect. The output is untrusted: it is made
 * harmless before it is shown.
 */
import {abortable, Scope} from '../core/lifetime.ts';
import type {Domain} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';

/**
 * Bytes. If a guest prints more than the second number, the rest is not read, because its output shares a connection
 * with all calls.
 */
const limits = {kept: 4096, read: 1024 * 1024};

const shown = {lines: 10, lineLength: 160};

/** How long the last console output may arrive after the VM has ended. */
const restMs = 300;

export class ConsoleTail {
	#tail = Buffer.alloc(0);
	#reading: Promise<void> = Promise.resolve();

	/** Reads in the background until the result is disposed, which closes the console. */
	follow(session: LibvirtCalls, domain: Domain, log: Logger): Disposable {
		const scope = new Scope();
		this.#reading = this.#read(session, domain, scope.signal).catch((error: unknown) => {
			if (!scope.signal.aborted) {
				log.debug({instanceName: domain.name, err: error}, 'console of the pod VM cannot be read');
			}
		});
		return {[Symbol.dispose]: () => scope.abort(new Error('The console is not read any more'))};
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

	async #read(session: LibvirtCalls, domain: Domain, signal: AbortSignal): Promise<void> {
		let total = 0;
		for await (const output of session.console(domain, signal)) {
			this.#tail = Buffer.concat([this.#tail, output]).subarray(-limits.kept);
			total += output.length;
			if (total > limits.read) {
				return;
			}
		}
	}
}

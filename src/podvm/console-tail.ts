/**
 * What a guest printed last on its console while it booted: for the error of a start that fails. A console that cannot
 * be read, because somebody else has it open for example, changes nothing. What a guest prints is its own: it is made
 * harmless before it is shown.
 */
import {abortable, Scope} from '../core/lifetime.ts';
import type {Domain} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';

/**
 * Bytes. Of a guest that prints more than the latter the rest is not read: its output shares a connection with all our
 * calls.
 */
const limits = {kept: 4096, read: 1024 * 1024};

const shown = {lines: 10, lineLength: 160};

/** How long the end of a console may come behind the news that its VM has ended. */
const restMs = 300;

export class ConsoleTail {
	#tail = Buffer.alloc(0);
	#reading: Promise<void> = Promise.resolve();

	/** Reads in the background until the result is disposed, which gives the console back. */
	follow(session: LibvirtCalls, domain: Domain, log: Logger): Disposable {
		const scope = new Scope();
		this.#reading = this.#read(session, domain, scope.signal).catch((error: unknown) => {
			if (!scope.signal.aborted) {
				log.debug({instanceName: domain.name, err: error}, 'console of the pod VM cannot be read');
			}
		});
		return {[Symbol.dispose]: () => scope.abort(new Error('The console is not read any more'))};
	}

	/** To be called when the VM has ended: resolves when all that it printed was read, or soon. */
	async rest(): Promise<void> {
		using scope = new Scope().deadline(restMs, 'the end of the console');
		await abortable(this.#reading, scope.signal).catch(() => undefined);
	}

	/**
	 * The last ones, oldest first, without what is not printable, and without the frames of a panic: what came before
	 * those says more.
	 */
	lines(): readonly string[] {
		return (
			this.#tail
				.toString()
				// ECMA-48, 5.4: control sequences, colours mostly.
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

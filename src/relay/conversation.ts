/**
 * One shim connection and its own connection to the VM, byte for byte in both directions.
 *
 *   shim ──▶ ShimLeg ══▶ VmLeg ──▶ VM        each direction: back-pressure by the other leg's buffer, its end passed on as an end
 *        ◀──         ◀══       ◀──
 *
 * The two legs live and die together today. When the VM's leg is to be replaced under a living shim, this is the place: `ShimLeg` stays,
 * another `VmLeg` is joined to it. Knows no addresses and no certificates.
 */
import type {Duplex} from 'node:stream';
import type {Socket} from 'node:net';
import type {TLSSocket} from 'node:tls';
import type {Logger} from '../log.ts';
import {CallObserver} from './calls.ts';

type Observe = (chunk: Buffer) => void;

/** One end: a stream, how it ended, and who is told. */
class Leg<S extends Duplex & {destroySoon(): void}> implements AsyncDisposable {
	readonly stream: S;
	/** Why it was lost, when it did not simply end. */
	error: Error | undefined;

	constructor(stream: S) {
		this.stream = stream;
		stream.on('error', error => {
			this.error ??= error;
			// Not every error of a half-open TLS socket closes it.
			stream.destroy();
		});
	}

	/** Bytes of this leg go to `other`, and its end too; `observe` sees them in passing. A leg that is lost takes the other with it. */
	forward(other: Leg<Duplex & {destroySoon(): void}>, observe: Observe): void {
		this.stream.on('data', observe);
		this.stream.pipe(other.stream);
		this.stream.once('close', () => {
			// After its end has been passed on there may still be bytes of it on their way to the other side.
			if (this.stream.readableEnded && this.error === undefined) {
				other.stream.destroySoon();
			} else {
				other.stream.destroy();
			}
		});
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.stream.destroy();
		await closed(this.stream);
	}
}

export class ShimLeg extends Leg<Socket> {}
export class VmLeg extends Leg<TLSSocket> {}

export interface ConversationOptions {
	readonly log: Logger;
	/** Milliseconds that only grow. */
	readonly now: () => number;
}

/** Disposing ends both legs at once. */
export class Conversation implements AsyncDisposable {
	readonly #shim: ShimLeg;
	readonly #vm: VmLeg;
	readonly #startedAt: number;
	/** Resolves when both legs are closed. */
	readonly ended: Promise<void>;
	#disposed = false;

	constructor(shim: ShimLeg, vm: VmLeg, {log, now}: ConversationOptions) {
		this.#shim = shim;
		this.#vm = vm;
		this.#startedAt = now();
		const calls = new CallObserver(log, now);
		shim.forward(vm, chunk => calls.fromShim(chunk));
		vm.forward(shim, chunk => calls.fromVm(chunk));
		this.ended = Promise.all([closed(shim.stream), closed(vm.stream)]).then(() => {
			const fields = {count: calls.openCalls, bytes: shim.stream.bytesRead + shim.stream.bytesWritten, durationMs: Math.round(now() - this.#startedAt)};
			if (vm.error !== undefined && !this.#disposed) {
				log.warn({...fields, err: vm.error}, 'connection to the VM lost, shim connection closed');
			} else {
				log.debug(fields, 'shim connection ended');
			}
		});
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#disposed = true;
		await Promise.all([this.#shim[Symbol.asyncDispose](), this.#vm[Symbol.asyncDispose]()]);
		await this.ended;
	}
}

async function closed(stream: Duplex): Promise<void> {
	if (!stream.closed) {
		await new Promise<void>(resolve => {
			stream.once('close', resolve);
		});
	}
}

/**
 * An ssh2 channel as a correct Duplex. The Duplex of ssh2 never closes while it is unread, loses the error of
 * `destroy(error)`, emits only 'end' when the far end of a forwarded socket closes, and reports writes after the loss
 * of the connection as successful. This one closes with the reason whenever the connection to the daemon is lost. Does
 * not know libvirt's protocol.
 *
 *   open ──far end: 'end' | exit──▶ ending ──all received data is read──▶ closed
 *     └──────── the connection is lost, destroy() ────────────────────────▶ closed
 */
import {Duplex} from 'node:stream';
import type {ClientChannel} from 'ssh2';
import {AdaptorError} from '../../core/errors.ts';
import type {SshConnection} from './ssh-connection.ts';

export interface ChannelEvents {
	/** Called at the first bytes: there is a daemon at the far end. */
	onFirstBytes(): void;
	/** Called if the far end closes without sending a byte: there is no daemon. */
	onSilence(): void;
}

/**
 * How long to wait for the exit status after stdout has closed: long enough for the status to arrive, short enough that
 * a lost connection is noticed soon.
 */
const exitStatusMs = 1000;
const stderrLimit = 2048;

export class SshChannel extends Duplex {
	readonly #channel: ClientChannel;
	readonly #connection: SshConnection;
	readonly #description: string;
	readonly #events: ChannelEvents;
	readonly #isCommand: boolean;
	readonly #onConnectionClose: () => void;
	#bytesReceived = 0;
	#stderr = '';
	#exit: string | undefined;
	#ending = false;
	#exitTimer: NodeJS.Timeout | undefined;
	#ownsConnection = false;

	/**
	 * Create it inside the callback that provides the channel: the process may exit by the next tick.
	 * @param description the far end, for errors
	 */
	constructor(
		channel: ClientChannel,
		connection: SshConnection,
		description: string,
		isCommand: boolean,
		events: ChannelEvents,
	) {
		super({allowHalfOpen: false});
		this.#channel = channel;
		this.#connection = connection;
		this.#description = description;
		this.#events = events;
		this.#isCommand = isCommand;
		this.#onConnectionClose = () => this.destroy(this.#lost(connection.lossReason()));
		connection.client.once('close', this.#onConnectionClose);
		channel.on('data', (chunk: Buffer) => this.#onData(chunk));
		channel.on('end', () => this.#onEnd());
		channel.on('close', () => this.#finish());
		channel.on('exit', (code: number | null, signal?: string) => {
			this.#exit =
				code === null
					? `was killed by ${signal ?? 'a signal'}`
					: code === 0
						? undefined
						: `exited with status ${code}`;
		});
		channel.stderr.on('data', (chunk: Buffer) => {
			this.#stderr = (this.#stderr + chunk.toString('utf8')).slice(0, stderrLimit);
		});
		// Other listeners still receive the error. Without this one, an early error would end the process.
		this.on('error', () => undefined);
	}

	/**
	 * After this call, destroying the channel also closes the connection.
	 * @returns false if the channel was already destroyed; then the connection still belongs to the caller
	 */
	takeConnection(): boolean {
		this.#ownsConnection = !this.destroyed;
		return this.#ownsConnection;
	}

	override _read(): void {
		this.#channel.resume();
	}

	override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
		this.#channel.write(chunk, error => done(error));
	}

	override _final(done: () => void): void {
		this.#channel.end();
		done();
	}

	override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
		clearTimeout(this.#exitTimer);
		this.#connection.client.off('close', this.#onConnectionClose);
		// Unread data would keep the channel open.
		this.#channel.removeAllListeners('data').resume();
		this.#channel.close();
		if (this.#ownsConnection) {
			this.#connection.hangUp();
		}

		done(error);
	}

	#onData(chunk: Buffer): void {
		if (this.#bytesReceived === 0) {
			this.#events.onFirstBytes();
		}

		this.#bytesReceived += chunk.length;
		if (!this.push(chunk)) {
			this.#channel.pause();
		}
	}

	#onEnd(): void {
		if (!this.#isCommand) {
			this.#finish();
			return;
		}

		// The reason why a command ended arrives between 'end' and 'close'. A command that only closed its output may
		// never exit by itself.
		this.#channel.end();
		this.#exitTimer = setTimeout(() => this.#finish(), exitStatusMs);
	}

	#finish(): void {
		if (this.#ending || this.destroyed) {
			return;
		}

		this.#ending = true;
		clearTimeout(this.#exitTimer);
		if (this.#bytesReceived === 0) {
			this.#events.onSilence();
		}

		const reason = this.#hangUpReason();
		if (this.readableLength === 0) {
			this.destroy(reason);
			return;
		}

		this.once('end', () => this.destroy(reason));
		this.push(null);
	}

	#hangUpReason(): AdaptorError {
		const stderr = this.#stderr.trim();
		return new AdaptorError({
			code: 'unavailable',
			what: `The host closed the connection to libvirt${this.#exit === undefined ? '' : `: the command ${this.#exit}`}${stderr === '' ? '' : `: ${stderr}`}`,
			where: {via: this.#description, bytesReceived: this.#bytesReceived},
			remedy: 'Check that libvirtd (or virtqemud) runs on the host and allows this user, and check its log.',
		});
	}

	#lost(cause: Error | undefined): AdaptorError {
		return new AdaptorError({
			code: 'unavailable',
			what: `The ssh connection to the host was lost: ${cause?.message ?? 'the host closed it'}`,
			where: {via: this.#description},
			remedy: 'Check the network between this node and the host, and that sshd still runs on the host.',
			cause,
		});
	}
}

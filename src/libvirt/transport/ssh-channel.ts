/**
 * An ssh2 channel as an honest Duplex. ssh2's own never closes while it is unread, forgets the error of
 * `destroy(error)`, tells nothing but 'end' when the far end of a forwarded socket hangs up, and reports writes after
 * the connection's death as done. This one closes whenever the way to the daemon is gone, with the reason. Knows
 * nothing of libvirt's protocol.
 *
 *   open ──far end: 'end' | exit──▶ ending ──what was received is read──▶ closed
 *     └──────── the connection is lost, destroy() ────────────────────────▶ closed
 */
import {Duplex} from 'node:stream';
import type {ClientChannel} from 'ssh2';
import {AdaptorError} from '../../core/errors.ts';
import type {SshConnection} from './ssh-connection.ts';

export interface ChannelEvents {
	/** The first bytes came: there is a daemon at the far end. */
	onFirstBytes(): void;
	/** The far end hung up without a single byte: whatever is there, it is no daemon. */
	onSilence(): void;
}

/**
 * Stdout closed, but the process lives: long enough for its exit status to come, short enough for a session to notice.
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
	 * Make it within the callback that hands the channel out: a process may have exited by the next tick.
	 * @param description of the far end, for errors
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
		// The error is not lost to whoever listens; without this, one that comes before anyone does would end the
		// process.
		this.on('error', () => undefined);
	}

	/**
	 * From now on the connection is hung up when this is destroyed.
	 * @returns false when it is already too late: the channel was destroyed and the connection is still the caller's
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
		// Unread data would hold the channel open; nobody wants it any more.
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

		// Why a command ended comes between 'end' and 'close'. One that only closed its output may never exit by
		// itself.
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

/**
 * Logs in over ssh and reads facts about the host, for checks. Uses a separate connection. Does not know libvirt's
 * protocol.
 */
import {connectSsh, type SshConnection, type SshOptions} from './ssh-connection.ts';
import {present} from '../../core/present.ts';
import {runRemote} from './ssh-command.ts';
import type {SshUri} from '../uri.ts';

export interface SshLogin {
	readonly user: string;
	readonly host: string;
	readonly port: number;
	readonly durationMs: number;
	/** Why the host key was accepted without verification; absent if it was verified. */
	readonly unproven?: string;
	/** Private keys that users other than the owner can read or write. */
	readonly exposedKeys: readonly string[];
}

export class SshProbe implements Disposable {
	readonly #uri: SshUri;
	readonly #options: Omit<SshOptions, 'log'>;
	#connection: SshConnection | undefined;

	constructor(uri: SshUri, options: Omit<SshOptions, 'log'>) {
		this.#uri = uri;
		this.#options = options;
	}

	/** Keeps the connection for further queries. @throws as `connectSsh` */
	async login(signal: AbortSignal): Promise<SshLogin> {
		let unproven: string | undefined;
		const exposedKeys: string[] = [];
		const startedAt = performance.now();
		const connection = await connectSsh(
			this.#uri,
			{
				...this.#options,
				log: {
					debug: () => undefined,
					warn({reason, path}) {
						if (path !== undefined) {
							exposedKeys.push(path);
						}

						unproven = reason ?? unproven;
					},
				},
			},
			signal,
		);
		this.#connection?.hangUp();
		this.#connection = connection;
		const {host, port, user = this.#options.user} = this.#uri;
		return {
			user,
			host,
			port,
			durationMs: performance.now() - startedAt,
			exposedKeys,
			...present({unproven}),
		};
	}

	/**
	 * The minimum clock difference in seconds: positive if the clock of the host is ahead, negative if it is behind.
	 * Call after `login`. Differences within the resolution of the clock and the round-trip time count as 0. Undefined
	 * if the account does not run the command.
	 */
	async clockSkew(signal: AbortSignal): Promise<number | undefined> {
		if (this.#connection === undefined) {
			throw new TypeError('clockSkew() needs login() first');
		}

		const before = Date.now() / 1000;
		const output = await runRemote(this.#connection.client, 'date +%s', signal).catch(() => '');
		signal.throwIfAborted();
		const after = Date.now() / 1000;
		if (!/^\d{9,11}$/.test(output.trim())) {
			return undefined;
		}

		// The host's clock was within this second when it answered; the local clock was between `before` and `after`.
		const second = Number(output);
		return Math.max(0, second - after) + Math.min(0, second + 1 - before);
	}

	[Symbol.dispose](): void {
		this.#connection?.hangUp();
		this.#connection = undefined;
	}
}

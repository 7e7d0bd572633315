/**
 * Logs in over ssh and looks around, for those who want to know whether and how that works. One connection, apart from
 * all others. Knows nothing of libvirt's protocol.
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
	/** Why the host's key was accepted without proof; absent when it was proven. */
	readonly unproven?: string;
	/** Private keys that others than their owner may read or write. */
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

	/** The connection stays for what is asked next. @throws as `connectSsh` */
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
	 * By how many seconds the host's clock is ahead of ours at least, or behind if negative; after `login`. What the
	 * clock's grain and the way of the answer explain is no difference. Undefined when the account runs no commands, or
	 * others than it is told to.
	 */
	async clockSkew(signal: AbortSignal): Promise<number | undefined> {
		if (this.#connection === undefined) {
			throw new TypeError('Nobody has logged in');
		}

		const before = Date.now() / 1000;
		const output = await runRemote(this.#connection.client, 'date +%s', signal).catch(() => '');
		signal.throwIfAborted();
		const after = Date.now() / 1000;
		if (!/^\d{9,11}$/.test(output.trim())) {
			return undefined;
		}

		// When the host said so, its clock stood somewhere within this second, and ours between the two.
		const second = Number(output);
		return Math.max(0, second - after) + Math.min(0, second + 1 - before);
	}

	[Symbol.dispose](): void {
		this.#connection?.hangUp();
		this.#connection = undefined;
	}
}

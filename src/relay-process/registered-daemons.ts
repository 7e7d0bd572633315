/**
 * The daemons that serve the hypervisor API behind the relay process. The daemon that registered last is the current
 * one. When its registration ends, the previous one becomes the current one again, for example when a rolling update is
 * undone. Does not call the daemons.
 */
import {Change} from '../core/concurrency/change.ts';
import type {Observer} from '../core/observer.ts';
import type {RelayProcessEvent} from './events.ts';

export interface RegisteredDaemon {
	/** Where it serves the hypervisor API. */
	readonly socketPath: string;
}

export class RegisteredDaemons {
	/** In the order of registration. */
	readonly #daemons: RegisteredDaemon[] = [];
	readonly #observer: Observer<RelayProcessEvent>;
	readonly #changed = new Change();

	constructor(observer: Observer<RelayProcessEvent>) {
		this.#observer = observer;
	}

	get current(): RegisteredDaemon | undefined {
		return this.#daemons.at(-1);
	}

	/** @returns disposing ends the registration */
	register(daemon: RegisteredDaemon): Disposable {
		this.#daemons.push(daemon);
		this.#observer.notify({kind: 'daemon-registered', path: daemon.socketPath});
		this.#changed.tell();
		return {
			[Symbol.dispose]: () => {
				const index = this.#daemons.indexOf(daemon);
				if (index !== -1) {
					this.#daemons.splice(index, 1);
					this.#observer.notify({
						kind: 'daemon-gone',
						path: daemon.socketPath,
						hasOther: this.#daemons.length > 0,
					});
					this.#changed.tell();
				}
			},
		};
	}

	/**
	 * Resolves with the current daemon as soon as there is one other than `except`. @throws the reason of the signal
	 */
	async next(except: RegisteredDaemon | undefined, signal: AbortSignal): Promise<RegisteredDaemon> {
		for (;;) {
			signal.throwIfAborted();
			const {current} = this;
			if (current !== undefined && current !== except) {
				return current;
			}

			await this.#changed.next(signal);
		}
	}
}

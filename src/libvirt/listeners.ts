/** A list of event listeners. If a listener throws, the notifier and the other listeners are not affected. */
export class Listeners<T> {
	readonly #listeners = new Set<(value: T) => void>();
	readonly #onError: (error: unknown) => void;

	constructor(onError: (error: unknown) => void) {
		this.#onError = onError;
	}

	add(listener: (value: T) => void): Disposable {
		this.#listeners.add(listener);
		return {
			[Symbol.dispose]: () => {
				this.#listeners.delete(listener);
			},
		};
	}

	notify(value: T): void {
		for (const listener of [...this.#listeners]) {
			try {
				listener(value);
			} catch (error) {
				this.#onError(error);
			}
		}
	}
}

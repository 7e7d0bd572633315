/** A list of event listeners. An error of a listener affects neither the notifier nor the other listeners. */
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

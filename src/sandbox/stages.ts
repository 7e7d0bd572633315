/** Measures the stages of a start for the log, and names the failed stage in its error. */
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {present} from '../core/present.ts';

export class Stages {
	readonly #durations: Record<string, number> = {};
	#current: {readonly name: string; readonly since: number} | undefined;

	/**
	 * The error of a failed start: the cause and the stage. It has no duration, because Kubernetes merges events with
	 * equal texts.
	 * @param consoleTail last console lines of the guest; joined into one line
	 */
	failed(thrown: unknown, consoleTail: readonly string[]): AdaptorError {
		const name = this.current ?? 'begin';
		const {what, where, remedy, reason} =
			thrown instanceof AdaptorError ? thrown : {what: toError(thrown).message, where: {}};
		return new AdaptorError({
			code: codeOf(thrown),
			what: `Could not ${name}: ${what}${consoleTail.length === 0 ? '' : `; its console ended with: ${consoleTail.join(' | ')}`}`,
			where,
			...present({remedy, reason}),
			cause: thrown,
		});
	}

	/** Undefined before the first and after the last. */
	get current(): string | undefined {
		return this.#current?.name;
	}

	/** When the current stage has begun. */
	get currentSince(): Date | undefined {
		return this.#current && new Date(Date.now() - (performance.now() - this.#current.since));
	}

	/** Duration of the current stage until now. */
	get currentMs(): number {
		return this.#current === undefined ? 0 : Math.round(performance.now() - this.#current.since);
	}

	enter(name: string): void {
		this.end();
		this.#current = {name, since: performance.now()};
	}

	/** @returns milliseconds by stage */
	end(): Readonly<Record<string, number>> {
		if (this.#current !== undefined) {
			this.#durations[this.#current.name] = Math.round(performance.now() - this.#current.since);
			this.#current = undefined;
		}

		return this.#durations;
	}
}

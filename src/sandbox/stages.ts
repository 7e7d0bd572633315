/** Measures the stages of a start for the log, and names the failed stage in its error. */
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {present} from '../core/present.ts';

export class Stages {
	readonly #durations: Record<string, number> = {};
	#current: {readonly name: string; readonly since: number} | undefined;

	/**
	 * The error of a failed start: that of the cause, with the stage. Without durations: Kubernetes counts events of
	 * one text as one.
	 * @param consoleTail last console lines of the guest
	 */
	failed(thrown: unknown, consoleTail: readonly string[]): AdaptorError {
		const {name: stage} = this.#current ?? {name: 'begin'};
		const {what, where, remedy, reason, cause} =
			thrown instanceof AdaptorError ? thrown : {what: toError(thrown).message, where: {}, cause: thrown};
		return new AdaptorError({
			code: codeOf(thrown),
			what,
			where: {stage, ...where},
			...present({remedy, reason, cause}),
			consoleTail,
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

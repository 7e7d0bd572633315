/** The result of a check for an operator: the state, and what to do about problems. Pure. */
import {AdaptorError, operatorText, toError} from '../core/errors.ts';
import {present} from '../core/present.ts';

/**
 * `warning`: peer pods run, but something is slow, unsafe or about to expire. `failure`: peer pods do not run.
 * `skipped`: cannot be checked, or does not apply here.
 */
export type Status = 'ok' | 'warning' | 'failure' | 'skipped';

export interface Finding {
	readonly status: Status;
	/** A phrase without a full stop. Identifiers and figures only, never a secret. */
	readonly text: string;
	/** Full sentences. Only present for a warning or a failure. */
	readonly remedy?: string;
}

/** One problem that a check found. */
export interface Problem {
	readonly status: 'warning' | 'failure';
	/** Continues the text of the fact: "it is not active". */
	readonly text: string;
	readonly remedy: string;
}

/** @param fact the observed state @param problems in the order of the text; the worst one sets the status */
export function finding(fact: string, ...problems: ReadonlyArray<Problem | undefined>): Finding {
	const present = problems.filter(problem => problem !== undefined);
	if (present.length === 0) {
		return {status: 'ok', text: fact};
	}

	return {
		status: present.some(({status}) => status === 'failure') ? 'failure' : 'warning',
		text: [fact, ...present.map(({text}) => text)].join('; '),
		remedy: present.map(({remedy}) => remedy).join(' '),
	};
}

/** The finding of a check that threw. @param remedy used if the error has no remedy of its own */
export function failureOf(thrown: unknown, remedy?: string): Finding {
	const error = toError(thrown);
	const [text, way] =
		error instanceof AdaptorError
			? [operatorText(error.what, error.where), error.remedy ?? remedy]
			: [error.message, remedy];
	return {status: 'failure', text, ...present({remedy: way})};
}

/** What a check says to an operator: how things are, and what to do where they are not well. Pure. */
import {AdaptorError, operatorText, toError} from '../core/errors.ts';

/**
 * `warning`: peer pods run, but something is slow, unsafe, or will end one day. `failure`: they do not.
 * `skipped`: cannot be looked at, or has no meaning here.
 */
export type Status = 'ok' | 'warning' | 'failure' | 'skipped';

export interface Finding {
	readonly status: Status;
	/** A phrase without a full stop. Identifiers and figures only, never a secret. */
	readonly text: string;
	/** Of a warning or a failure: full sentences. */
	readonly remedy?: string;
}

/** One thing that is not well. */
export interface Problem {
	readonly status: 'warning' | 'failure';
	/** Goes on after what was found: "it is not active". */
	readonly text: string;
	readonly remedy: string;
}

/** @param fact what was found, well or not; @param problems in the order in which they are told; the worst decides */
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

/** What kept a check from finding anything. @param remedy for errors that bring none */
export function failureOf(thrown: unknown, remedy?: string): Finding {
	const error = toError(thrown);
	const [text, way] =
		error instanceof AdaptorError
			? [operatorText(error.what, error.where), error.remedy ?? remedy]
			: [error.message, remedy];
	return {status: 'failure', text, ...(way === undefined ? {} : {remedy: way})};
}

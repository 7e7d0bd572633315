/** One total function from whatever was thrown to what a peer sees: a status code and the operator's text. */
import {AdaptorError, codeOf, toError, type ErrorCode} from '../core/errors.ts';

export interface Status {
	/** google.rpc.Code: the same numbers in gRPC and ttrpc. */
	readonly code: number;
	readonly message: string;
}

/** Written down rather than imported: a library for fourteen numbers would be loaded for callers who never use it. */
const codes: Readonly<Record<ErrorCode, number>> = {
	cancelled: 1,
	'invalid-argument': 3,
	'deadline-exceeded': 4,
	'not-found': 5,
	'already-exists': 6,
	'permission-denied': 7,
	'resource-exhausted': 8,
	'failed-precondition': 9,
	aborted: 10,
	unimplemented: 12,
	internal: 13,
	unavailable: 14,
	'data-loss': 15,
	unauthenticated: 16,
};

export function toStatus(error: unknown): Status {
	const code = codeOf(error);
	// An error that nobody foresaw may say anything, a secret included: its text stays in our log.
	return {
		code: codes[code],
		message:
			code === 'internal' && !(error instanceof AdaptorError)
				? 'Internal error; see the log of the daemon'
				: toError(error).message,
	};
}

/** One total function from whatever was thrown to what a peer sees: a status code and the operator's text. */
import {status} from '@grpc/grpc-js';
import {AdaptorError, codeOf, toError, type ErrorCode} from '../errors.ts';

export interface Status {
	/** google.rpc.Code: the same numbers in gRPC and ttrpc. */
	readonly code: status;
	readonly message: string;
}

const codes: Readonly<Record<ErrorCode, status>> = {
	'cancelled': status.CANCELLED,
	'invalid-argument': status.INVALID_ARGUMENT,
	'deadline-exceeded': status.DEADLINE_EXCEEDED,
	'not-found': status.NOT_FOUND,
	'already-exists': status.ALREADY_EXISTS,
	'permission-denied': status.PERMISSION_DENIED,
	'resource-exhausted': status.RESOURCE_EXHAUSTED,
	'failed-precondition': status.FAILED_PRECONDITION,
	'aborted': status.ABORTED,
	'unimplemented': status.UNIMPLEMENTED,
	'internal': status.INTERNAL,
	'unavailable': status.UNAVAILABLE,
	'data-loss': status.DATA_LOSS,
	'unauthenticated': status.UNAUTHENTICATED,
};

export function toStatus(error: unknown): Status {
	const code = codeOf(error);
	// An error that nobody foresaw may say anything, a secret included: its text stays in our log.
	return {code: codes[code], message: code === 'internal' && !(error instanceof AdaptorError) ? 'Internal error; the daemon\'s log has the details' : toError(error).message};
}

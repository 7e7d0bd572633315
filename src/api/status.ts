/** One total function from whatever was thrown to what a peer sees: a status code and the operator's text. */
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {statusOf} from '../ttrpc/status.ts';

export interface Status {
	/** google.rpc.Code: the same numbers in gRPC and ttrpc. */
	readonly code: number;
	readonly message: string;
}

export function toStatus(error: unknown): Status {
	const code = codeOf(error);
	// An error that nobody foresaw may say anything, a secret included: its text stays in our log.
	return {
		code: statusOf(code),
		message:
			code === 'internal' && !(error instanceof AdaptorError)
				? 'Internal error; see the log of the daemon'
				: toError(error).message,
	};
}

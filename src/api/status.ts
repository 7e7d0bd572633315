/** Converts any thrown value to the status for the caller: a code and the text for the operator. */
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {statusOf} from '../ttrpc/status.ts';

export interface Status {
	/** google.rpc.Code: the same numbers in gRPC and ttrpc. */
	readonly code: number;
	readonly message: string;
}

export function toStatus(error: unknown): Status {
	const code = codeOf(error);
	// The text of an unexpected error may contain a secret, so only the log has it.
	return {
		code: statusOf(code),
		message:
			code === 'internal' && !(error instanceof AdaptorError)
				? 'Internal error; see the log of the daemon'
				: toError(error).message,
	};
}

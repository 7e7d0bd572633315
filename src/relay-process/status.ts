/** From what was thrown to the status that a peer gets. */
import {AdaptorError} from '../core/errors.ts';
import {statusOf, TtrpcError, type Status} from '../ttrpc/status.ts';

/** @returns undefined for an error that nobody foresaw: its text may say anything */
export function toStatus(error: unknown): Status | undefined {
	// A status of the daemon is passed on unchanged.
	if (error instanceof TtrpcError) {
		return error.status;
	}

	return error instanceof AdaptorError ? {code: statusOf(error.code), message: error.message} : undefined;
}

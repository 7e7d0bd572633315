/**
 * How a call ended: the numbers of google.rpc.Code, and the error that a status which is not OK becomes.
 * Knows no wire format.
 */
import {AdaptorError, type ErrorCode} from '../core/errors.ts';

/** google/rpc/code.proto. */
export const statusCode = {
	ok: 0,
	cancelled: 1,
	unknown: 2,
	invalidArgument: 3,
	deadlineExceeded: 4,
	notFound: 5,
	alreadyExists: 6,
	permissionDenied: 7,
	resourceExhausted: 8,
	failedPrecondition: 9,
	aborted: 10,
	outOfRange: 11,
	unimplemented: 12,
	internal: 13,
	unavailable: 14,
	dataLoss: 15,
	unauthenticated: 16,
} as const;

/** google/rpc/status.proto. */
export interface Status {
	/** One of `statusCode`; a peer may send any 32-bit integer. */
	readonly code: number;
	readonly message: string;
	readonly details?: readonly StatusDetail[];
}

/** google.protobuf.Any. */
export interface StatusDetail {
	readonly typeUrl: string;
	readonly value: Buffer;
}

const errorCodes: Readonly<Record<number, ErrorCode>> = {
	[statusCode.cancelled]: 'cancelled',
	[statusCode.invalidArgument]: 'invalid-argument',
	[statusCode.deadlineExceeded]: 'deadline-exceeded',
	[statusCode.notFound]: 'not-found',
	[statusCode.alreadyExists]: 'already-exists',
	[statusCode.permissionDenied]: 'permission-denied',
	[statusCode.resourceExhausted]: 'resource-exhausted',
	[statusCode.failedPrecondition]: 'failed-precondition',
	[statusCode.aborted]: 'aborted',
	[statusCode.outOfRange]: 'invalid-argument',
	[statusCode.unimplemented]: 'unimplemented',
	[statusCode.unavailable]: 'unavailable',
	[statusCode.dataLoss]: 'data-loss',
	[statusCode.unauthenticated]: 'unauthenticated',
};

/**
 * A call that ended with a status, the peer's or our own. `code` is the status's nearest meaning, `status` is exact.
 */
export class TtrpcError extends AdaptorError {
	override readonly name = 'TtrpcError';
	readonly status: Status;

	constructor(status: Status, cause?: unknown) {
		super({code: errorCodes[status.code] ?? 'internal', what: status.message, cause});
		this.status = status;
	}
}

/**
 * The result of a call: the table of google.rpc.Code, and the error for a status that is not OK. Independent of the
 * wire format.
 */
import {AdaptorError, type ErrorCode} from '../core/errors.ts';

/**
 * google/rpc/code.proto: the number of each status, its gRPC name, and the code of the corresponding AdaptorError
 * ('internal' if there is none). If two statuses have the same code, the code is converted to the first of them.
 */
const statuses = {
	ok: {number: 0, name: 'OK'},
	cancelled: {number: 1, name: 'CANCELLED', code: 'cancelled'},
	unknown: {number: 2, name: 'UNKNOWN'},
	invalidArgument: {number: 3, name: 'INVALID_ARGUMENT', code: 'invalid-argument'},
	deadlineExceeded: {number: 4, name: 'DEADLINE_EXCEEDED', code: 'deadline-exceeded'},
	notFound: {number: 5, name: 'NOT_FOUND', code: 'not-found'},
	alreadyExists: {number: 6, name: 'ALREADY_EXISTS', code: 'already-exists'},
	permissionDenied: {number: 7, name: 'PERMISSION_DENIED', code: 'permission-denied'},
	resourceExhausted: {number: 8, name: 'RESOURCE_EXHAUSTED', code: 'resource-exhausted'},
	failedPrecondition: {number: 9, name: 'FAILED_PRECONDITION', code: 'failed-precondition'},
	aborted: {number: 10, name: 'ABORTED', code: 'aborted'},
	outOfRange: {number: 11, name: 'OUT_OF_RANGE', code: 'invalid-argument'},
	unimplemented: {number: 12, name: 'UNIMPLEMENTED', code: 'unimplemented'},
	internal: {number: 13, name: 'INTERNAL', code: 'internal'},
	unavailable: {number: 14, name: 'UNAVAILABLE', code: 'unavailable'},
	dataLoss: {number: 15, name: 'DATA_LOSS', code: 'data-loss'},
	unauthenticated: {number: 16, name: 'UNAUTHENTICATED', code: 'unauthenticated'},
} as const satisfies Readonly<Record<string, StatusMeaning>>;

interface StatusMeaning {
	readonly number: number;
	readonly name: string;
	readonly code?: ErrorCode;
}

type Statuses = typeof statuses;

/** The numbers by name. */
export const statusCode = Object.fromEntries(Object.entries(statuses).map(([key, {number}]) => [key, number])) as {
	readonly [Key in keyof Statuses]: Statuses[Key]['number'];
};

const byNumber = new Map<number, StatusMeaning>(Object.values(statuses).map(status => [status.number, status]));
const byCode = new Map<ErrorCode, number>(
	Object.values<StatusMeaning>(statuses)
		.reverse()
		.flatMap(({code, number}) => (code === undefined ? [] : [[code, number]])),
);

/** The status of a call that fails with this error code. */
export function statusOf(code: ErrorCode): number {
	return byCode.get(code) ?? statusCode.internal;
}

/** The name in gRPC; the number itself if the protocol does not define it. */
export function statusName(status: number): string {
	return byNumber.get(status)?.name ?? String(status);
}

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

/**
 * The error of a call that ended with a status, from the peer or from this side. `code` is the nearest AdaptorError
 * code; `status` is the exact status.
 */
export class TtrpcError extends AdaptorError {
	override readonly name = 'TtrpcError';
	readonly status: Status;

	constructor(status: Status, cause?: unknown) {
		super({code: byNumber.get(status.code)?.code ?? 'internal', what: status.message, cause});
		this.status = status;
	}
}

/** For `ServerOptions.toStatus`. @returns undefined for an unexpected error: its text may contain a secret */
export function toStatus(error: unknown): Status | undefined {
	if (error instanceof TtrpcError) {
		return error.status;
	}

	return error instanceof AdaptorError ? {code: statusOf(error.code), message: error.message} : undefined;
}

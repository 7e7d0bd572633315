/**
 * A refusal of the API server, or the reason why there is no answer. Knows status codes of HTTP and reasons of
 * Kubernetes, not the purpose of requests.
 */
import {AdaptorError, type ErrorCode, type ErrorWhere} from '../core/errors.ts';
import {at, parseJsonOrNothing, textAt} from '../core/json.ts';
import {present} from '../core/present.ts';

interface KubernetesErrorParts {
	readonly what: string;
	readonly where: ErrorWhere;
	readonly code: ErrorCode;
	readonly remedy?: string;
	readonly cause?: unknown;
	readonly status?: number;
	readonly statusReason?: string;
	readonly retryAfterMs?: number;
	readonly isKindMissing?: boolean;
	readonly mayHaveBeenExecuted?: boolean;
}

export class KubernetesError extends AdaptorError {
	override readonly name = 'KubernetesError';
	/** Status code of HTTP; undefined if there was no answer, or an unreadable one. */
	readonly status: number | undefined;
	/**
	 * The reason of Kubernetes (`NotFound`, `AlreadyExists`, `Conflict`, `Expired`, …); undefined if another server
	 * than the API answered.
	 */
	readonly statusReason: string | undefined;
	/** The Retry-After of the server. */
	readonly retryAfterMs: number | undefined;
	/** The API server does not know this kind: its custom resource definition is not installed. */
	readonly isKindMissing: boolean;
	/** Without an answer: whether the server may have executed the request. */
	readonly mayHaveBeenExecuted: boolean;

	constructor({
		status,
		statusReason,
		retryAfterMs,
		isKindMissing = false,
		mayHaveBeenExecuted = false,
		...parts
	}: KubernetesErrorParts) {
		super(parts);
		this.status = status;
		this.statusReason = statusReason;
		this.retryAfterMs = retryAfterMs;
		this.isKindMissing = isKindMissing;
		this.mayHaveBeenExecuted = mayHaveBeenExecuted;
	}
}

export function isNotFound(error: unknown): error is KubernetesError {
	return error instanceof KubernetesError && error.status === 404;
}

/** The object has changed since it was read, or it is another one with the same name. */
export function isConflict(error: unknown): error is KubernetesError {
	return error instanceof KubernetesError && error.status === 409 && error.statusReason !== 'AlreadyExists';
}

export function isAlreadyExists(error: unknown): error is KubernetesError {
	return error instanceof KubernetesError && error.statusReason === 'AlreadyExists';
}

/** The server no longer stores this part of the history: list again. */
export function isExpired(error: unknown): error is KubernetesError {
	return error instanceof KubernetesError && error.status === 410;
}

/** The API server does not know this kind of object: its custom resource definition is not installed. */
export function isKindMissing(error: unknown): boolean {
	return error instanceof KubernetesError && error.isKindMissing;
}

/**
 * The object itself does not exist, according to the API: neither is its kind missing, nor does the answer come from a
 * proxy that does not know the path.
 */
export function isObjectMissing(error: unknown): error is KubernetesError {
	return isNotFound(error) && error.statusReason === 'NotFound' && !error.isKindMissing;
}

/**
 * A refusal that will not change soon. None is final: permissions and kinds change, and a starting server refuses
 * requests for some seconds.
 */
export function isRefusal(error: unknown): error is AdaptorError {
	if (!(error instanceof KubernetesError)) {
		return error instanceof AdaptorError && error.code === 'invalid-argument';
	}

	const {status = 500} = error;
	return status >= 400 && status < 500 && status !== 401 && status !== 429;
}

/** A server may request any pause; longer ones would delay the recovery of this daemon. */
const longestRetryAfterMs = 30_000;

/** The requested pause of the server, limited; undefined if it requested none. */
export function retryAfterOf(error: unknown): number | undefined {
	return error instanceof KubernetesError && error.retryAfterMs !== undefined
		? Math.min(error.retryAfterMs, longestRetryAfterMs)
		: undefined;
}

const maxMessageLength = 500;

/**
 * The error for an answer with status 400 or more.
 * @param body a Status of Kubernetes (Kubernetes API conventions, "Response Status Kind") or any text
 * @param retryAfter the value of the header
 */
export function refusal(
	status: number,
	body: string,
	retryAfter: string | undefined,
	where: ErrorWhere,
): KubernetesError {
	// A proxy answers with text, and so does the server for an unknown path.
	const answer = parseJsonOrNothing(body);
	const isStatus = textAt(answer, 'kind') === 'Status';
	const statusReason = isStatus ? textAt(answer, 'reason') : undefined;
	const said = (isStatus ? textAt(answer, 'message') : undefined) ?? `HTTP status ${status}`;
	const seconds = Number(retryAfter ?? at(answer, 'details', 'retryAfterSeconds') ?? Number.NaN);
	const remedy = remedyFor(status);
	return new KubernetesError({
		what: `The Kubernetes API refused: ${said.slice(0, maxMessageLength).replaceAll(/\p{Cc}+/gv, ' ')}`,
		where,
		code: codeFor(status, statusReason),
		status,
		...present({statusReason, remedy}),
		...(seconds >= 0 ? {retryAfterMs: seconds * 1000} : {}),
		// For an existing kind the Status names the object; for a missing kind there is a text, or no name.
		isKindMissing: status === 404 && (!isStatus || textAt(answer, 'details', 'name') === undefined),
	});
}

function codeFor(status: number, statusReason: string | undefined): ErrorCode {
	switch (status) {
		case 400:
		case 413:
		case 415:
		case 422: {
			return 'invalid-argument';
		}

		case 401: {
			return 'unauthenticated';
		}

		case 403: {
			return 'permission-denied';
		}

		case 404: {
			return 'not-found';
		}

		case 409: {
			return statusReason === 'AlreadyExists' ? 'already-exists' : 'aborted';
		}

		case 410: {
			return 'aborted';
		}

		case 429: {
			return 'resource-exhausted';
		}

		default: {
			return status >= 500 ? 'unavailable' : 'internal';
		}
	}
}

function remedyFor(status: number): string | undefined {
	return {
		401: 'Check that the service account exists and that its token is mounted.',
		403: 'Give the service account the permissions that deploy/ gives it.',
	}[status];
}

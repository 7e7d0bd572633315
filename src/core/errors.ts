/**
 * The base class of every error that leaves a module: what went wrong, where, and what to do. Knows no protocol: `api/`
 * translates the codes.
 */

/** The meaning of an error for the caller, named after the status codes of gRPC. */
export type ErrorCode =
	| 'invalid-argument'
	| 'not-found'
	| 'already-exists'
	| 'failed-precondition'
	| 'resource-exhausted'
	| 'permission-denied'
	| 'unauthenticated'
	| 'unavailable'
	| 'deadline-exceeded'
	| 'cancelled'
	| 'aborted'
	| 'data-loss'
	| 'unimplemented'
	| 'internal';

/**
 * Identifiers only (names, ids, addresses, numbers): these are logged and sent to peers. Never a value that could be
 * secret.
 */
export type ErrorWhere = Readonly<Record<string, string | number | boolean>>;

export interface ErrorParts {
	readonly code: ErrorCode;
	/** A sentence without a full stop: what could not be done, and why. */
	readonly what: string;
	readonly where?: ErrorWhere;
	/** What the operator can do, as a full sentence. */
	readonly remedy?: string;
	/**
	 * For programs, like the reason of a Kubernetes Event: one CamelCase word. Only for errors that an operator must
	 * distinguish from others.
	 */
	readonly reason?: string;
	/** Last lines of the console of a guest, oldest first. */
	readonly consoleTail?: readonly string[];
	readonly cause?: unknown;
}

export class AdaptorError extends Error {
	override readonly name: string = 'AdaptorError';
	readonly code: ErrorCode;
	readonly what: string;
	readonly where: ErrorWhere;
	readonly remedy: string | undefined;
	readonly reason: string | undefined;
	readonly consoleTail: readonly string[];

	constructor({code, what, where = {}, remedy, reason, consoleTail = [], cause}: ErrorParts) {
		super(withConsole(operatorText(what, where, remedy), consoleTail), cause === undefined ? undefined : {cause});
		this.code = code;
		this.what = what;
		this.where = where;
		this.remedy = remedy;
		this.reason = reason;
		this.consoleTail = consoleTail;
	}
}

/** Kubernetes cuts the message of an event at 1,024 bytes. */
const maxTextBytes = 1000;
/** Less of a console explains nothing. */
const leastConsoleBytes = 40;

/** Adds the console after everything else. If it is too long, its oldest part is left out. */
function withConsole(text: string, lines: readonly string[]): string {
	const start = `${text}${text.endsWith('.') ? '' : '.'} Its console ended with: `;
	const whole = Buffer.from(lines.join(' | '));
	const space = maxTextBytes - Buffer.byteLength(start);
	if (whole.length === 0 || space < Math.min(whole.length, leastConsoleBytes)) {
		return text;
	}

	const cut = '…';
	return whole.length <= space
		? `${start}${whole.toString()}`
		: // The cut may be within a character.
			`${start}${cut}${whole
				.subarray(Buffer.byteLength(cut) - space)
				.toString()
				.replace(/^\uFFFD+/v, '')}`;
}

/** Text of a peer or a user for errors and logs: cut to 256 characters, so that nobody can flood them. */
export function echoed(text: string): string {
	return text.length <= maxEchoLength ? text : `${text.slice(0, maxEchoLength - 1).toWellFormed()}…`;
}

const maxEchoLength = 256;

/**
 * The text for operators: what, where in brackets, and the remedy as a separate sentence. Long values are cut, because
 * callers may have sent them.
 */
export function operatorText(what: string, where: ErrorWhere, remedy?: string): string {
	const places = Object.entries(where).map(
		([name, value]) => `${name} ${JSON.stringify(typeof value === 'string' ? echoed(value) : value)}`,
	);
	return `${what}${places.length > 0 ? ` (${places.join(', ')})` : ''}${remedy === undefined ? '' : `. ${remedy}`}`;
}

/** Any thrown value as an `Error`. */
export function toError(thrown: unknown): Error {
	return thrown instanceof Error ? thrown : new Error(String(thrown));
}

/** The code of any thrown value: the code of an `AdaptorError`, the code for an abort or a timeout, or 'internal'. */
export function codeOf(thrown: unknown): ErrorCode {
	if (thrown instanceof AdaptorError) {
		return thrown.code;
	}

	if (thrown instanceof Error && thrown.name === 'TimeoutError') {
		return 'deadline-exceeded';
	}

	return thrown instanceof Error && thrown.name === 'AbortError' ? 'cancelled' : 'internal';
}

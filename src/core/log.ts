/**
 * One event, one line, stable field names. The message is a fixed phrase; values are fields.
 * Secrets are a type that prints `[redacted]` wherever it ends up.
 */
import {inspect} from 'node:util';
import {pino, type DestinationStream, type Logger as PinoLogger} from 'pino';
import {AdaptorError, echoed, type ErrorWhere} from './errors.ts';
import {present} from './present.ts';

export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';

/** All fields of log lines. Each name has the same meaning everywhere, and contains the unit. */
export interface LogFields {
	readonly address?: string;
	readonly attempt?: number;
	readonly bytes?: number;
	readonly certificate?: string;
	readonly check?: string;
	readonly code?: string;
	readonly connection?: number;
	/** The last line of the console of a VM. */
	readonly console?: string;
	readonly count?: number;
	readonly domainType?: string;
	readonly durationMs?: number;
	readonly err?: unknown;
	readonly event?: string;
	readonly host?: string;
	readonly image?: string;
	/** Its digest, never its content. */
	readonly initdata?: string;
	readonly instanceName?: string;
	readonly isolatedPort?: boolean;
	readonly libvirtVersion?: string;
	readonly mac?: string;
	readonly memoryMib?: number;
	readonly memoryFrom?: string;
	readonly method?: string;
	/** Name of the VM's network filter, or `none`. */
	readonly netFilter?: string;
	readonly netns?: string;
	readonly network?: string;
	readonly node?: string;
	readonly path?: string;
	readonly pid?: number;
	readonly pod?: string;
	readonly pool?: string;
	readonly port?: number;
	readonly probePort?: number;
	readonly protocol?: string;
	readonly reason?: string;
	/** Where the sockets of shims are: `relay process` or `this process`. */
	readonly relay?: string;
	readonly remedy?: string;
	readonly retryInMs?: number;
	readonly runtimeClass?: string;
	readonly sandboxId?: string;
	readonly signal?: string;
	readonly stage?: string;
	readonly swiotlbMib?: number;
	readonly timings?: Readonly<Record<string, number>>;
	readonly transport?: string;
	readonly uri?: string;
	readonly vcpus?: number;
	readonly vcpusFrom?: string;
	readonly version?: string;
	readonly vmId?: string;
	readonly vni?: number;
	readonly volume?: string;
}

type Write = (fields: LogFields, message: string) => void;

/** `error`: someone must act. `warn`: we acted. `info`: the life of a sandbox. `debug`: per call. */
export interface Logger {
	readonly trace: Write;
	readonly debug: Write;
	readonly info: Write;
	readonly warn: Write;
	readonly error: Write;
	readonly fatal: Write;
	child(fields: LogFields): Logger;
}

/**
 * The level for a failed attempt that is retried: attempts 1, 2, 4, 8 … are warnings, the others are not, so that a
 * long outage does not flood the log.
 */
export function levelOfAttempt(attempt: number): 'warn' | 'debug' {
	return Number.isInteger(Math.log2(attempt)) ? 'warn' : 'debug';
}

export interface LogOptions {
	readonly level: LogLevel;
	readonly format: 'json' | 'pretty';
	/** The destination of lines: the descriptor of standard error (2) in production. */
	readonly destination: number | NodeJS.WritableStream;
	/** Also gets each line, as JSON with a line feed. */
	readonly tap?: (line: string) => void;
}

/** The root of all loggers of a process. Its level applies to its children too, at once. */
export interface RootLogger extends Logger {
	level: LogLevel;
}

export async function createLogger({level, format, destination, tap}: LogOptions): Promise<RootLogger> {
	const options = {
		// `adopt` decides, because children of pino keep the level that their parent had.
		level: 'trace',
		base: null,
		timestamp: pino.stdTimeFunctions.isoTime,
		formatters: {level: (label: string) => ({level: label})},
		serializers: {err: describeError},
	};
	if (format === 'pretty') {
		const {default: pretty} = await import('pino-pretty');
		const lines = pretty({destination, sync: true, translateTime: 'SYS:HH:MM:ss.l', singleLine: true});
		return root(pino(options, tapped(lines, tap)), level);
	}

	const lines = typeof destination === 'number' ? pino.destination({dest: destination, sync: true}) : destination;
	return root(pino(options, tapped(lines, tap)), level);
}

function tapped(lines: DestinationStream, tap: LogOptions['tap']): DestinationStream {
	return tap === undefined
		? lines
		: {
				write(line) {
					tap(line);
					lines.write(line);
				},
			};
}

interface Gate {
	level: LogLevel;
}

const severities: Readonly<Record<LogLevel, number>> = {
	trace: 10,
	debug: 20,
	info: 30,
	warn: 40,
	error: 50,
	fatal: 60,
	silent: Infinity,
};

function root(logger: PinoLogger, level: LogLevel): RootLogger {
	const gate: Gate = {level};
	return Object.defineProperty(adopt(logger, gate), 'level', {
		get: () => gate.level,
		set(next: LogLevel) {
			gate.level = next;
		},
	}) as RootLogger;
}

/** For tests and tools without a log. */
export const silentLogger: Logger = adopt(pino({level: 'silent'}), {level: 'silent'});

function adopt(logger: PinoLogger, gate: Gate): Logger {
	const write =
		(level: Exclude<LogLevel, 'silent'>): Write =>
		(fields, message) => {
			if (severities[level] >= severities[gate.level]) {
				logger[level](fields, message);
			}
		};
	return {
		trace: write('trace'),
		debug: write('debug'),
		info: write('info'),
		warn: write('warn'),
		error: write('error'),
		fatal: write('fatal'),
		child: fields => adopt(logger.child(fields), gate),
	};
}

interface ErrorDescription {
	readonly type: string;
	/** Absent for our own errors: `what`, `where` and `remedy` say the same. */
	readonly message?: string;
	readonly code?: string;
	readonly what?: string;
	readonly where?: ErrorWhere;
	readonly remedy?: string;
	readonly reason?: string;
	/** Last lines of the console of a guest. */
	readonly console?: readonly string[];
	readonly stack?: string;
	readonly cause?: ErrorDescription;
	/** Causes of an error with several causes, in their order. */
	readonly errors?: readonly ErrorDescription[];
}

/**
 * Errors as fields: an AdaptorError by its parts and without a stack, other errors with their stack, causes nested.
 * Other properties are not printed.
 */
export function describeError(error: unknown): ErrorDescription {
	if (!(error instanceof Error)) {
		return {type: typeof error, message: String(error)};
	}

	const errors =
		error instanceof SuppressedError
			? [error.suppressed, error.error]
			: error instanceof AggregateError
				? error.errors
				: [];
	const code: unknown = 'code' in error ? error.code : undefined;
	return {
		type: error.name,
		...(error instanceof AdaptorError ? partsOf(error) : {message: error.message}),
		...(typeof code === 'string' ? {code} : {}),
		...(!(error instanceof AdaptorError) && error.stack !== undefined ? {stack: error.stack} : {}),
		...(error.cause === undefined ? {} : {cause: describeError(error.cause)}),
		...(errors.length === 0 ? {} : {errors: errors.map(describeError)}),
	};
}

function partsOf({what, where, remedy, reason, consoleTail}: AdaptorError): Partial<ErrorDescription> {
	return {
		what,
		...(Object.keys(where).length === 0 ? {} : {where: echoedWhere(where)}),
		...present({remedy, reason}),
		...(consoleTail.length === 0 ? {} : {console: consoleTail}),
	};
}

/** Callers may have sent the values. */
function echoedWhere(where: ErrorWhere): ErrorWhere {
	return Object.fromEntries(
		Object.entries(where).map(([name, value]) => [name, typeof value === 'string' ? echoed(value) : value]),
	);
}

/**
 * A value that is never printed: every conversion to text returns `[redacted]`. `reveal()` is easy to find in a review.
 */
export class Secret<T> {
	readonly #value: T;

	constructor(value: T) {
		this.#value = value;
	}

	reveal(): T {
		return this.#value;
	}

	toString(): string {
		return '[redacted]';
	}

	toJSON(): string {
		return '[redacted]';
	}

	[Symbol.toPrimitive](): string {
		return '[redacted]';
	}

	[inspect.custom](): string {
		return '[redacted]';
	}
}

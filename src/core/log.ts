/**
 * One event, one line, stable field names. The message is a fixed phrase; values are fields.
 * Secrets are a type that prints `[redacted]` wherever it ends up.
 */
import {inspect} from 'node:util';
import {pino, type Logger as PinoLogger} from 'pino';
import {AdaptorError} from './errors.ts';

export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';

/** Every field that a line may carry: one name for one thing everywhere, in the units that the name says. */
export interface LogFields {
	readonly address?: string;
	readonly attempt?: number;
	readonly bytes?: number;
	readonly certificate?: string;
	readonly check?: string;
	readonly code?: string;
	readonly connection?: number;
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
 * Of an attempt that failed and is made again: the first ones, then fewer and fewer are warnings. An outage of a night
 * is not to fill the log.
 */
export function levelOfAttempt(attempt: number): 'warn' | 'debug' {
	return Number.isInteger(Math.log2(attempt)) ? 'warn' : 'debug';
}

export interface LogOptions {
	readonly level: LogLevel;
	readonly format: 'json' | 'pretty';
	/** Where lines go; standard error's descriptor (2) in production. */
	readonly destination: number | NodeJS.WritableStream;
}

export async function createLogger({level, format, destination}: LogOptions): Promise<Logger> {
	const options = {
		level,
		base: null,
		timestamp: pino.stdTimeFunctions.isoTime,
		formatters: {level: (label: string) => ({level: label})},
		serializers: {err: describeError},
	};
	if (format === 'pretty') {
		const {default: pretty} = await import('pino-pretty');
		return adopt(
			pino(options, pretty({destination, sync: true, translateTime: 'SYS:HH:MM:ss.l', singleLine: true})),
		);
	}

	return adopt(
		pino(
			options,
			typeof destination === 'number' ? pino.destination({dest: destination, sync: true}) : destination,
		),
	);
}

/** For tests and tools that want no lines. */
export const silentLogger: Logger = adopt(pino({level: 'silent'}));

function adopt(logger: PinoLogger): Logger {
	const write =
		(level: Exclude<LogLevel, 'silent'>): Write =>
		(fields, message) =>
			logger[level](fields, message);
	return {
		trace: write('trace'),
		debug: write('debug'),
		info: write('info'),
		warn: write('warn'),
		error: write('error'),
		fatal: write('fatal'),
		child: fields => adopt(logger.child(fields)),
	};
}

interface ErrorDescription {
	readonly type: string;
	readonly message: string;
	readonly code?: string;
	readonly stack?: string;
	readonly cause?: ErrorDescription;
	/** Of an error that stands for several, in the order in which they came. */
	readonly errors?: readonly ErrorDescription[];
}

/**
 * Errors as fields: ours by their parts without a stack, foreign ones with it, causes nested. Nothing else of the
 * object is printed.
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
		message: error.message,
		...(typeof code === 'string' ? {code} : {}),
		...(!(error instanceof AdaptorError) && error.stack !== undefined ? {stack: error.stack} : {}),
		...(error.cause === undefined ? {} : {cause: describeError(error.cause)}),
		...(errors.length === 0 ? {} : {errors: errors.map(describeError)}),
	};
}

/**
 * A value that must never be printed: every way to turn it into text gives `[redacted]`; `reveal()` is easy to find in
 * review.
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

/** The interface between main.ts and a command. */
import type {Host} from '../config/config.ts';
import type {ProcessContext} from '../daemon.ts';
import type {Logger} from '../core/log.ts';

export const exitCode = {ok: 0, failure: 1, usage: 2} as const;

/** Output for a person. */
export interface Screen {
	write(text: string): void;
	/** Characters per line; absent if it is not a terminal. */
	readonly columns?: number;
}

export interface CommandContext {
	readonly env: Readonly<Record<string, string | undefined>>;
	/** Values by flag name without dash; a switch without a value is 'true'. */
	readonly flags: Readonly<Record<string, string>>;
	readonly operands: readonly string[];
	readonly host: Host;
	readonly processContext: Omit<ProcessContext, 'version' | 'recentLines'>;
	readonly version: string;
	/** For the result. */
	readonly out: Screen;
	/** For progress and warnings. */
	readonly err: Screen;
	/** Asks a person; absent without a terminal. */
	readonly confirm?: (question: string, signal: AbortSignal) => Promise<boolean>;
	/** File descriptor for log lines. */
	readonly logTo: number;
	/** Called when the logger exists, so that later errors are logged. */
	readonly onLogger: (log: Logger) => void;
}

/**
 * Runs until it is done or the signal aborts.
 * @returns the exit code
 * @throws any error that ends the command; main.ts reports it
 */
export type Command = (context: CommandContext, signal: AbortSignal) => Promise<number>;

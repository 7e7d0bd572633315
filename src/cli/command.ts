/** What a command is to the process edge: what it is handed, and what it answers. */
import type {Host} from '../config/config.ts';
import type {ProcessContext} from '../daemon.ts';
import type {Logger} from '../core/log.ts';

export const exitCode = {ok: 0, failure: 1, usage: 2} as const;

/** A stream to an operator's eyes. */
export interface Screen {
	write(text: string): void;
	/** Characters in a line; absent when nobody may be looking: not a terminal. */
	readonly columns?: number;
}

export interface CommandContext {
	readonly env: Readonly<Record<string, string | undefined>>;
	/** By the flag's name without dash; a switch that stands alone is 'true'. */
	readonly flags: Readonly<Record<string, string>>;
	readonly operands: readonly string[];
	readonly host: Host;
	readonly processContext: ProcessContext;
	readonly version: string;
	/** What was asked for. */
	readonly out: Screen;
	/** What is said about it: progress, complaints. */
	readonly err: Screen;
	/** Where log lines go: a file descriptor. */
	readonly logTo: number;
	/** To be told the logger as soon as there is one: what goes wrong from then on is logged. */
	readonly onLogger: (log: Logger) => void;
}

/**
 * Runs until it is done or the signal aborts.
 * @returns the exit code
 * @throws whatever keeps it from its work; the edge reports it
 */
export type Command = (context: CommandContext, signal: AbortSignal) => Promise<number>;

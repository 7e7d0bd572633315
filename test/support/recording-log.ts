/** A logger that stores its lines, for tests of log output. */
import type {LogFields, Logger, LogLevel} from '../../src/core/log.ts';

export interface LogLine {
	readonly level: Exclude<LogLevel, 'silent'>;
	readonly message: string;
	readonly fields: LogFields;
}

export function recordingLog(
	lines: LogLine[] = [],
	inherited: LogFields = {},
): Logger & {readonly lines: readonly LogLine[]} {
	const write =
		(level: LogLine['level']) =>
		(fields: LogFields, message: string): void => {
			lines.push({level, message, fields: {...inherited, ...fields}});
		};

	return {
		trace: write('trace'),
		debug: write('debug'),
		info: write('info'),
		warn: write('warn'),
		error: write('error'),
		fatal: write('fatal'),
		child: fields => recordingLog(lines, {...inherited, ...fields}),
		lines,
	};
}

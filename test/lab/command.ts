/** Runs a program of the machine to its end, for the builders of the lab. Knows nothing of what it does. */
import {spawn, type SpawnOptions} from 'node:child_process';
import {buffer, text} from 'node:stream/consumers';
import {pipeline} from 'node:stream/promises';
import {AdaptorError} from '../../src/core/errors.ts';

export interface CommandOptions extends Pick<SpawnOptions, 'cwd' | 'env'> {
	/** Goes to standard input. */
	readonly input?: Uint8Array;
	/** Hears the lines that the program writes to its file descriptor 3. */
	readonly onStatus?: (line: string) => void;
	/** How to get the program, for when it is not there. */
	readonly remedy?: string;
}

/**
 * Resolves with what it printed.
 * @throws AdaptorError 'failed-precondition' when the program is missing or fails, with the end of what it said
 */
export async function run(
	program: string,
	args: readonly string[],
	{input, onStatus, remedy, cwd, env}: CommandOptions,
	signal: AbortSignal,
): Promise<Buffer> {
	const fails = (how: string, cause?: unknown): AdaptorError =>
		new AdaptorError({
			code: 'failed-precondition',
			what: `${program} ${args[0] ?? ''}: ${how}`,
			...(remedy === undefined ? {} : {remedy}),
			cause,
		});
	const child = spawn(program, args, {
		cwd,
		env,
		signal,
		stdio: ['pipe', 'pipe', 'pipe', onStatus === undefined ? 'ignore' : 'pipe'],
	});
	const {stdin, stdout, stderr} = child;
	if (stdin === null || stdout === null || stderr === null) {
		throw new TypeError('all three are pipes');
	}

	if (onStatus !== undefined) {
		eachLine(child.stdio[3] as NodeJS.ReadableStream, onStatus);
	}

	// A program that does not read its input is judged by its exit status alone.
	const written = pipeline([input ?? Buffer.alloc(0)], stdin).catch(() => undefined);
	const printed = Promise.all([buffer(stdout), text(stderr)]);
	let failure: unknown;
	child.on('error', error => {
		failure ??= error;
	});
	// Also after an error: who aborts wants to remove what the program was writing to.
	await new Promise(resolve => child.once('close', resolve));
	await written;
	const [output, complaint] = await printed;
	if (failure !== undefined) {
		signal.throwIfAborted();
		throw fails('could not be started', failure);
	}

	if (child.exitCode !== 0) {
		const said = complaint.trim() || output.toString().trim();
		throw fails(
			said.split('\n').slice(-4).join(' | ') || `ended with ${child.exitCode ?? child.signalCode ?? 'nothing'}`,
		);
	}

	return output;
}

function eachLine(stream: NodeJS.ReadableStream, take: (line: string) => void): void {
	let rest = '';
	stream.setEncoding('utf8').on('data', (chunk: string) => {
		const lines = (rest + chunk).split('\n');
		rest = lines.pop() ?? '';
		lines.forEach(take);
	});
}

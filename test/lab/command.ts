/** Runs a program of the machine to its end, for the builders of the lab. Does not know the programs. */
import {spawn, type SpawnOptions} from 'node:child_process';
import {buffer, text} from 'node:stream/consumers';
import {pipeline} from 'node:stream/promises';
import {AdaptorError} from '../../src/core/errors.ts';

export interface CommandOptions extends Pick<SpawnOptions, 'cwd' | 'env'> {
	/** The standard input. */
	readonly input?: Uint8Array;
	/** Called for each line that the program writes to file descriptor 3. */
	readonly onStatus?: (line: string) => void;
	/** How to install the program if it is missing. */
	readonly remedy?: string;
}

/**
 * Resolves with the output.
 * @throws AdaptorError 'failed-precondition' if the program is missing or fails, with the end of its error output
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

	// If a program does not read its input, only its exit status matters.
	const written = pipeline([input ?? Buffer.alloc(0)], stdin).catch(() => undefined);
	const printed = Promise.all([buffer(stdout), text(stderr)]);
	let failure: unknown;
	child.on('error', error => {
		failure ??= error;
	});
	// Wait after an error too: after an abort, the caller may remove the directory that the program was writing to.
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

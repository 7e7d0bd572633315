#!/usr/bin/env -S node --optimize-for-size --max-semi-space-size=1 --no-maglev --disable-sigusr1
/**
 * Entry point: arguments and environment in, exit code out, signals. The only file that names `process`. The options in
 * its first line are for memory (docs/adr/0022), and keep SIGUSR1 from opening the inspector of Node, which would give
 * access to a privileged process. The first SIGTERM or SIGINT drains; a second one exits at once.
 */
import {readFileSync} from 'node:fs';
import {homedir, hostname, userInfo} from 'node:os';
import {helpText, parseArguments} from './cli/arguments.ts';
import {exitCode, type Command, type CommandContext, type Screen} from './cli/command.ts';
import type {CommandName} from './cli/commands.ts';
import type {Build} from './cli/version.ts';
import {AdaptorError, toError} from './core/errors.ts';
import {Secret, type Logger} from './core/log.ts';

/** Loaded on demand: `help` works without the daemon, and the daemon does not load the modules of other commands. */
const load: Readonly<Record<CommandName, () => Promise<Command>>> = {
	check: async () => (await import('./cli/check.ts')).check,
	libvirt: async () => (await import('./cli/run.ts')).run,
	controller: async () => (await import('./cli/controller.ts')).controller,
	relay: async () => (await import('./cli/relay.ts')).relay,
	pods: async () => (await import('./cli/pods.ts')).pods,
	'pods inspect': async () => (await import('./cli/pods.ts')).inspectPod,
	'pods console': async () => (await import('./cli/pods.ts')).podConsole,
	'pods rm': async () => (await import('./cli/pods.ts')).removePod,
	'log-level': async () => (await import('./cli/log-level.ts')).logLevel,
	webhook: async () => (await import('./cli/webhook.ts')).webhook,
	'image push': async () => (await import('./cli/image.ts')).pushCommand,
	'image pack': async () => (await import('./cli/image.ts')).packCommand,
	'image list': async () => (await import('./cli/image.ts')).listCommand,
	'image use': async () => (await import('./cli/image.ts')).useCommand,
	'image rm': async () => (await import('./cli/image.ts')).removeCommand,
	'image prune': async () => (await import('./cli/image.ts')).pruneCommand,
};

/** 128 plus the number of SIGINT: the exit code of interrupted commands in shells. */
const interrupted = 128 + 2;
/** Abandoned work gets this time to end before the process exits. */
const stragglersMs = 500;
const tokenFile = '/var/run/secrets/kubernetes.io/serviceaccount/token';

let log: Logger | undefined;

function report(error: unknown, message: string): void {
	if (log === undefined) {
		process.stderr.write(
			`cloud-api-adaptor: ${error instanceof AdaptorError ? error.message : (toError(error).stack ?? '')}\n`,
		);
	} else {
		log.fatal({err: error}, message);
	}
}

/** After an unexpected error the state is unknown; the next process recovers from the journal. */
function giveUp(error: unknown): void {
	report(error, 'unexpected error');
	process.exit(exitCode.failure);
}

process.on('uncaughtException', giveUp);

function serviceAccountToken(): {serviceAccountToken?: Secret<string>} {
	try {
		return {serviceAccountToken: new Secret(readFileSync(tokenFile, 'utf8'))};
	} catch {
		return {};
	}
}

function build(): Build {
	return JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as Build;
}

function screen(stream: NodeJS.WriteStream): Screen {
	stream.on('error', (error: NodeJS.ErrnoException) => {
		// The reader has closed the pipe, like `head`: the work continues to its end.
		if (error.code !== 'EPIPE') {
			giveUp(error);
		}
	});
	const write = (text: string): void => void stream.write(text);
	return stream.isTTY
		? {
				write,
				// The width of a terminal can change.
				get columns() {
					return stream.columns;
				},
			}
		: {write};
}

async function confirm(question: string, signal: AbortSignal): Promise<boolean> {
	const {createInterface} = await import('node:readline/promises');
	using terminal = createInterface({input: process.stdin, output: process.stdout});
	return /^y(?:es)?$/iv.test(await terminal.question(`${question} [y/N] `, {signal}));
}

/** The user id of a container may have no account; then the system returns an error. */
function account(): {readonly home: string; readonly user: string} {
	try {
		return {home: homedir(), user: userInfo().username};
	} catch {
		return {home: process.env['HOME'] ?? '/', user: String(process.getuid?.() ?? '')};
	}
}

async function runCommand(name: CommandName, given: Pick<CommandContext, 'flags' | 'operands'>): Promise<number> {
	// Before anything is loaded: the first process of a container ignores signals without a listener.
	const stopping = new AbortController();
	for (const signal of ['SIGTERM', 'SIGINT'] as const) {
		process.on(signal, () => {
			if (stopping.signal.aborted) {
				process.exit(interrupted);
			}

			stopping.abort(new AdaptorError({code: 'unavailable', what: `The process received ${signal}`}));
		});
	}

	try {
		const command = await load[name]();
		return await command(
			{
				...given,
				env: process.env,
				host: {hostname: hostname(), ...serviceAccountToken()},
				processContext: {...account(), uid: process.getuid?.(), sshAgentSocket: process.env['SSH_AUTH_SOCK']},
				version: build().version,
				out: screen(process.stdout),
				err: screen(process.stderr),
				...(process.stdin.isTTY ? {confirm} : {}),
				logTo: process.stderr.fd,
				onLogger(logger) {
					log = logger;
				},
			},
			stopping.signal,
		);
	} catch (error) {
		if (stopping.signal.aborted && error === stopping.signal.reason) {
			return interrupted;
		}

		throw error;
	}
}

async function main(argv: readonly string[]): Promise<number> {
	const parsed = parseArguments(argv);
	if (parsed.command === 'help') {
		screen(process.stdout).write(helpText(parsed.topic));
		return exitCode.ok;
	}

	if (parsed.command === 'version') {
		const {versionText} = await import('./cli/version.ts');
		screen(process.stdout).write(versionText(build(), process.version));
		return exitCode.ok;
	}

	return runCommand(parsed.command, parsed);
}

try {
	process.exitCode = await main(process.argv.slice(2));
} catch (error) {
	report(error, 'cannot run');
	process.exitCode =
		error instanceof AdaptorError && error.code === 'invalid-argument' ? exitCode.usage : exitCode.failure;
}

// Everything is disposed. Work that was abandoned must not delay the exit.
setTimeout(() => process.exit(), stragglersMs).unref();

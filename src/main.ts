#!/usr/bin/env node
/**
 * The process edge: arguments and environment in, exit code out, signals. The only file that names `process`.
 * The first SIGTERM or SIGINT drains; a second one exits at once.
 */
import {readFileSync} from 'node:fs';
import {homedir, hostname, userInfo} from 'node:os';
import {helpText, parseArguments} from './cli/arguments.ts';
import {AdaptorError, toError} from './errors.ts';
import {Secret, type Logger} from './log.ts';

const exitCode = {ok: 0, failure: 1, usage: 2, signal: 128 + 2} as const;
const tokenFile = '/var/run/secrets/kubernetes.io/serviceaccount/token';

let log: Logger | undefined;

function report(error: unknown, message: string): void {
	if (log === undefined) {
		process.stderr.write(`cloud-api-adaptor: ${error instanceof AdaptorError ? error.message : toError(error).stack ?? ''}\n`);
	} else {
		log.fatal({err: error}, message);
	}
}

// Nobody expected it, so nothing is known about the state any more; whoever restarts us finds what is left through its journal.
process.on('uncaughtException', error => {
	report(error, 'unexpected error');
	process.exit(exitCode.failure);
});

function serviceAccountToken(): {serviceAccountToken?: Secret<string>} {
	try {
		return {serviceAccountToken: new Secret(readFileSync(tokenFile, 'utf8'))};
	} catch {
		return {};
	}
}

function version(): string {
	const {version: text} = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as {version: string};
	return text;
}

async function runDaemon(flags: Readonly<Record<string, string>>): Promise<number> {
	// Loaded only here: `help` and `version` answer without it.
	const {run} = await import('./cli/run.ts');
	const stopping = new AbortController();
	for (const name of ['SIGTERM', 'SIGINT'] as const) {
		process.on(name, () => {
			if (stopping.signal.aborted) {
				process.exit(exitCode.signal);
			}

			stopping.abort(new AdaptorError({code: 'unavailable', what: `The daemon was told to stop by ${name}`}));
		});
	}

	const running = run({
		env: process.env,
		flags,
		host: {hostname: hostname(), ...serviceAccountToken()},
		surroundings: {home: homedir(), user: userInfo().username, sshAgentSocket: process.env['SSH_AUTH_SOCK']},
		version: version(),
		logTo: process.stderr.fd,
		onLogger(logger) {
			log = logger;
		},
	}, stopping.signal);
	try {
		await running;
	} catch (error) {
		// Told to stop while it started: that is what it did.
		if (error !== stopping.signal.reason) {
			throw error;
		}
	}

	return exitCode.ok;
}

async function main(argv: readonly string[]): Promise<number> {
	const parsed = parseArguments(argv);
	switch (parsed.command) {
		case 'libvirt': {
			return runDaemon(parsed.flags);
		}

		case 'help': {
			process.stdout.write(helpText());
			return exitCode.ok;
		}

		case 'version': {
			process.stdout.write(`cloud-api-adaptor ${version()}\n`);
			return exitCode.ok;
		}
	}
}

try {
	process.exitCode = await main(process.argv.slice(2));
} catch (error) {
	report(error, 'cannot run');
	process.exitCode = error instanceof AdaptorError && error.code === 'invalid-argument' ? exitCode.usage : exitCode.failure;
}

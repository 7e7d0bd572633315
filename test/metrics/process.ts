/** A command as a container runs it; killed with its test. */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {createInterface} from 'node:readline';
import {fileURLToPath} from 'node:url';
import type {ExecutionContext} from 'ava';
import {nodeOptions} from '../support/node-options.ts';

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

export interface Process {
	readonly lines: readonly string[];
	/** Resolves with the first line with this message. */
	readonly event: (message: string) => Promise<Readonly<Record<string, unknown>>>;
	readonly stop: () => Promise<void>;
}

export function processOf(t: ExecutionContext, command: string, env: Readonly<Record<string, string>>): Process {
	const child = spawn(process.execPath, [...nodeOptions, main, command], {
		env: {PATH: process.env['PATH'], HOME: '/nonexistent', ...env},
		stdio: ['ignore', 'ignore', 'pipe'],
	});
	const exited = once(child, 'close');
	t.teardown(async () => {
		child.kill('SIGKILL');
		await exited;
	});
	const lines: string[] = [];
	const reader = createInterface({input: child.stderr}).on('line', line => lines.push(line));
	return {
		lines,
		async event(message) {
			for (;;) {
				const found = lines.find(line => line.includes(`"msg":"${message}"`));
				if (found !== undefined) {
					return JSON.parse(found) as Record<string, unknown>;
				}

				if (child.exitCode !== null || child.signalCode !== null) {
					throw new Error(`It ended without saying ${message}:\n${lines.join('\n')}`);
				}

				await Promise.race([once(reader, 'line'), exited]);
			}
		},
		async stop() {
			child.kill('SIGTERM');
			await exited;
		},
	};
}

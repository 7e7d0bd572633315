/**
 * `cloud-api-adaptor image …` as a process of its own; with IN_POD_OF, in a mount namespace where that directory is a
 * pod's service account.
 */
import {spawn, type ChildProcessByStdio} from 'node:child_process';
import {once} from 'node:events';
import type {Readable} from 'node:stream';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import type {ExecutionContext} from 'ava';

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

export interface Finished {
	readonly code: number | null;
	readonly out: string;
	readonly err: string;
}

export interface Running {
	readonly child: ChildProcessByStdio<null, Readable, Readable>;
	readonly finished: Promise<Finished>;
}

export function start(
	t: ExecutionContext,
	env: Readonly<Record<string, string>>,
	...words: readonly string[]
): Running {
	const inPod =
		env['IN_POD_OF'] === undefined
			? []
			: [
					'unshare',
					'--mount',
					'sh',
					'-c',
					`mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && ln -s ${env['IN_POD_OF']} /run/secrets/kubernetes.io/serviceaccount && exec "$@"`,
					'sh',
				];
	const [program = '', ...rest] = [...inPod, process.execPath, main, 'image', ...words];
	const child = spawn(program, rest, {
		env: {PATH: process.env['PATH'], HOME: '/nonexistent', ...env},
		stdio: ['ignore', 'pipe', 'pipe'],
	});
	const finished = (async () => {
		const [out, err] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
		return {code: child.exitCode, out, err};
	})();
	t.teardown(async () => {
		child.kill('SIGKILL');
		await finished;
	});
	return {child, finished};
}

export async function run(
	t: ExecutionContext,
	env: Readonly<Record<string, string>>,
	...words: readonly string[]
): Promise<Finished> {
	return start(t, env, ...words).finished;
}

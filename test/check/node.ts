/**
 * A worker node in namespaces of its own, and a KVM host behind a unix socket on the same machine, for the program as a
 * process: libvirt's test driver, with the capabilities of a recorded s390x host. Everything is well there, but for
 * warnings.
 */
import {spawn, type ChildProcessByStdio} from 'node:child_process';
import {once} from 'node:events';
import {text} from 'node:stream/consumers';
import type {Readable} from 'node:stream';
import {fileURLToPath} from 'node:url';
import type {ExecutionContext} from 'ava';
import {NetworkTestbed} from '../network/testbed.ts';
import {directoryOf} from '../support/directory.ts';
import {baseVolume, pool, startTestDriverHost, type TestDriverHost} from '../support/test-driver-host.ts';

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

export interface Run {
	readonly code: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

export interface TestNode {
	readonly testbed: NetworkTestbed;
	readonly host: TestDriverHost;
	readonly directory: string;
	/** Starts the program on the node; killed with the test. */
	start(
		words: readonly string[],
		env?: Readonly<Record<string, string>>,
	): ChildProcessByStdio<null, Readable, Readable>;
	/** Runs it to its end. */
	run(words: readonly string[], env?: Readonly<Record<string, string>>): Promise<Run>;
}

export async function startNode(t: ExecutionContext): Promise<TestNode> {
	const directory = await directoryOf(t);
	const [host, testbed] = await Promise.all([startTestDriverHost(directory), NetworkTestbed.create()]);
	t.teardown(async () => Promise.all([host[Symbol.asyncDispose](), testbed[Symbol.asyncDispose]()]));
	const start: TestNode['start'] = (words, env = {}) => {
		const child = spawn(
			'setpriv',
			['--pdeathsig', 'KILL', '--', ...testbed.shell.slice(0, -1), process.execPath, main, ...words],
			{
				cwd: '/',
				stdio: ['ignore', 'pipe', 'pipe'],
				env: {
					PATH: process.env['PATH'],
					HOME: directory,
					CLUSTER_ID: 'test',
					NODE_NAME: 'worker-0',
					LIBVIRT_URI: `test:///default?socket=${host.socketPath}`,
					LIBVIRT_POOL: pool,
					LIBVIRT_VOL_NAME: baseVolume,
					LIBVIRT_MEMORY: '1',
					LIBVIRT_ROOT_DISK_SIZE: '1',
					REMOTE_HYPERVISOR_ENDPOINT: `${directory}/hypervisor.sock`,
					PODS_DIR: `${directory}/pods`,
					...env,
				},
			},
		);
		t.teardown(() => void child.kill('SIGKILL'));
		return child;
	};

	return {
		testbed,
		host,
		directory,
		start,
		async run(words, env) {
			const child = start(words, env);
			const [stdout, stderr, [code]] = await Promise.all([
				text(child.stdout),
				text(child.stderr),
				once(child, 'close') as Promise<[number | null]>,
			]);
			return {code, stdout, stderr};
		},
	};
}

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
import {World} from '../network/world.ts';
import {directoryOf} from '../support/directory.ts';
import {baseVolume, pool, startKvmHost, type KvmHost} from '../support/kvm-host.ts';

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));

export interface Run {
	readonly code: number | null;
	readonly stdout: string;
	readonly stderr: string;
}

export interface TestNode {
	readonly world: World;
	readonly host: KvmHost;
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
	const [host, world] = await Promise.all([startKvmHost(directory), World.create()]);
	t.teardown(async () => Promise.all([host[Symbol.asyncDispose](), world[Symbol.asyncDispose]()]));
	const start: TestNode['start'] = (words, env = {}) => {
		const child = spawn(
			'setpriv',
			['--pdeathsig', 'KILL', '--', ...world.shell.slice(0, -1), process.execPath, main, ...words],
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
		world,
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

/**
 * The real topology on one machine: a KVM host and a worker node on one subnet, each a network namespace, with real
 * sshd, libvirtd, dnsmasq and QEMU. Used by the demo and the end-to-end tests. Concurrent labs are isolated from each
 * other, and from the network, libvirt and files of the machine. namespaces.ts explains why nothing can be left over.
 */
import type {ChildProcess} from 'node:child_process';
import {readdir, readFile} from 'node:fs/promises';
import {basename} from 'node:path';
import {takeInventory, type Inventory} from './inventory.ts';
import {startKvmHost, virsh, type KvmHost} from './kvm-host.ts';
import {Namespaces, type RunOptions} from './namespaces.ts';
import {paths, subnet, type PodShape} from './topology.ts';
import {createPodNamespace, createWorker, plug, type PodNamespace} from './worker.ts';

export interface LabOptions {
	/** A qcow2 file that becomes the base volume; no base volume if absent. */
	readonly image?: string;
	/** Aborts the start, and later the commands in the lab; not the lab itself. */
	readonly signal: AbortSignal;
}

export interface Lab extends AsyncDisposable {
	/** Id of the process that holds the lab, for tests that watch it end. */
	readonly pid: number;
	readonly kvmHost: KvmHost;
	/** The libvirt URI for the worker; key and known_hosts are paths in the lab. */
	readonly sshUri: string;
	/** Converts a path in the lab to one that this process can open, also for unix sockets. */
	outside(path: string): string;
	/** Starts a program on the worker node, with a clean environment. */
	workerRun(argv: readonly string[], options?: RunOptions): ChildProcess;
	/** Starts a program on the KVM host. */
	hostRun(argv: readonly string[], options?: RunOptions): ChildProcess;
	/** Runs virsh on the KVM host, and returns its output. */
	virsh(...args: readonly string[]): Promise<string>;
	/** Runs virsh on the worker over ssh, and returns its output. */
	workerVirsh(...args: readonly string[]): Promise<string>;
	/**
	 * @param name of the network namespace, unique in the lab
	 * @param shape how its CNI plugin configures it; `bridge` by default
	 */
	podNamespace(name: string, options?: {readonly shape?: PodShape}): Promise<PodNamespace>;
	/** By domain: the output of its console, also for a domain that is gone. */
	consoles(): Promise<ReadonlyMap<string, string>>;
	/** The present state of the adaptor. */
	inventory(): Promise<Inventory>;
}

/** @throws 'failed-precondition' if this machine cannot run a lab; the error names what is missing */
export async function startLab({image, signal}: LabOptions): Promise<Lab> {
	await using stack = new AsyncDisposableStack();
	const namespaces = stack.use(await Namespaces.create(signal));
	const [kvmHost] = await Promise.all([startKvmHost(namespaces, image, signal), createWorker(namespaces, signal)]);
	await plug(namespaces, signal);

	const sshUri = `qemu+ssh://root@${subnet.host}/system?keyfile=${paths.key}&known_hosts=${paths.knownHosts}`;
	const resources = stack.move();
	let pods = 0;
	return {
		pid: namespaces.pid,
		kvmHost,
		sshUri,
		outside: path => namespaces.outside(path),
		workerRun: (argv, options) => namespaces.run('worker', argv, options),
		hostRun: (argv, options) => namespaces.run('kvmhost', argv, options),
		virsh: async (...args) => virsh(namespaces, args, signal),
		workerVirsh: async (...args) => namespaces.exec('worker', ['virsh', '--quiet', '-c', sshUri, ...args], signal),
		podNamespace: async (name, {shape = 'bridge'} = {}) =>
			createPodNamespace(namespaces, name, shape, 2 + pods++, signal),
		consoles: async () => consoles(namespaces),
		inventory: async () => takeInventory(namespaces, signal),
		[Symbol.asyncDispose]: async () => resources.disposeAsync(),
	};
}

async function consoles(namespaces: Namespaces): Promise<Map<string, string>> {
	const directory = namespaces.outside(paths.consoleLogs);
	const files = await readdir(directory);
	return new Map(
		await Promise.all(
			files.map(async file => [basename(file, '.log'), await readFile(`${directory}/${file}`, 'utf8')] as const),
		),
	);
}

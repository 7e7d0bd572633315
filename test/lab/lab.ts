/**
 * The real topology on one machine: a KVM host and a worker node on one subnet, each a network namespace, with real
 * sshd, libvirtd, dnsmasq and QEMU. Shared by the demo and the end-to-end tests. Several labs at once do not see each
 * other, nor the machine's own network, libvirt or files; see namespaces.ts for why nothing can be left over.
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
	/** A qcow2 file that becomes the base volume; none when absent. */
	readonly image?: string;
	/** Ends the start, and later what the lab is being asked for; not the lab itself. */
	readonly signal: AbortSignal;
}

export interface Lab extends AsyncDisposable {
	/** Of the process that holds the lab, for those who watch it end. */
	readonly pid: number;
	readonly kvmHost: KvmHost;
	/** How the worker reaches libvirt; key and known_hosts are paths in the lab. */
	readonly sshUri: string;
	/** A path in the lab as this process can open it, unix sockets too. */
	outside(path: string): string;
	/** Starts a program on the worker node, without anything of this process's environment. */
	workerRun(argv: readonly string[], options?: RunOptions): ChildProcess;
	/** Starts a program on the KVM host. */
	hostRun(argv: readonly string[], options?: RunOptions): ChildProcess;
	/** What virsh prints, on the KVM host. */
	virsh(...args: readonly string[]): Promise<string>;
	/** What virsh prints, on the worker, over ssh. */
	workerVirsh(...args: readonly string[]): Promise<string>;
	/**
	 * @param name of the network namespace, unique in the lab;
	 * @param shape how its CNI plugin leaves it, `bridge` unless given
	 */
	podNamespace(name: string, options?: {readonly shape?: PodShape}): Promise<PodNamespace>;
	/** What guests printed on their consoles, by domain; kept when the domain is gone. */
	consoles(): Promise<ReadonlyMap<string, string>>;
	/** What of the adaptor's there is right now. */
	inventory(): Promise<Inventory>;
}

/** @throws 'failed-precondition' when the machine cannot have a lab; the error says what is missing */
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

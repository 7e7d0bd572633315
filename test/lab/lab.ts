/**
 * The real topology on one machine: a KVM host and a worker node on one subnet, each a network namespace, with real sshd, libvirtd,
 * dnsmasq and QEMU. Shared by the demo and the end-to-end tests. Several labs at once do not see each other, nor the machine's own
 * network, libvirt or files; see namespaces.ts for why nothing can be left over.
 */
import type {ChildProcess} from 'node:child_process';
import {readdir, readFile} from 'node:fs/promises';
import {basename} from 'node:path';
import {startKvmHost, virsh, type KvmHost} from './kvm-host.ts';
import {Namespaces, type RunOptions} from './namespaces.ts';
import {names, paths, subnet} from './topology.ts';
import {createPodNamespace, createWorker, plug, type PodNamespace} from './worker.ts';

export interface LabOptions {
	/** A qcow2 file that becomes the base volume; none when absent. */
	readonly image?: string;
	/** Ends the start, and later what the lab is being asked for; not the lab itself. */
	readonly signal: AbortSignal;
}

export interface Inventory {
	readonly domains: readonly string[];
	/** Of the pool, without the base volume. */
	readonly volumes: readonly string[];
	/** Of the domains' network interfaces. */
	readonly macs: readonly string[];
	/** Under the adaptor's directory, `/run/peerpod`, sockets not included. */
	readonly files: readonly string[];
	readonly sockets: readonly string[];
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
	/** @param name of the network namespace, unique in the lab */
	podNamespace(name: string): Promise<PodNamespace>;
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
		podNamespace: async name => createPodNamespace(namespaces, name, 2 + pods++, signal),
		consoles: async () => consoles(namespaces),
		inventory: async () => inventory(namespaces, signal),
		[Symbol.asyncDispose]: async () => resources.disposeAsync(),
	};
}

async function consoles(namespaces: Namespaces): Promise<Map<string, string>> {
	const directory = namespaces.outside(paths.consoleLogs);
	const files = await readdir(directory);
	return new Map(await Promise.all(files.map(async file => [basename(file, '.log'), await readFile(`${directory}/${file}`, 'utf8')] as const)));
}

async function inventory(namespaces: Namespaces, signal: AbortSignal): Promise<Inventory> {
	const domains = lines(await virsh(namespaces, ['list', '--all', '--name'], signal));
	// One that is gone meanwhile has no interfaces.
	const interfaces = await Promise.all(domains.map(async name => virsh(namespaces, ['domiflist', name], signal).catch(() => '')));
	const entries = await readdir(namespaces.outside(paths.peerpod), {recursive: true, withFileTypes: true}).catch((error: unknown) => {
		if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
			return [];
		}

		throw error;
	});
	const inside = (kept: typeof entries): string[] => kept.map(entry => `${entry.parentPath}/${entry.name}`.slice(namespaces.outside('').length)).sort();
	return {
		domains,
		// From the directory, not from libvirt: a file that libvirt has forgotten is left over too.
		volumes: (await readdir(namespaces.outside(names.images))).filter(name => name !== names.baseVolume).sort(),
		macs: interfaces.flatMap(table => table.match(/\b(?:[\da-f]{2}:){5}[\da-f]{2}\b/g) ?? []).sort(),
		files: inside(entries.filter(entry => !entry.isDirectory() && !entry.isSocket())),
		sockets: inside(entries.filter(entry => entry.isSocket())),
	};
}

function lines(text: string): string[] {
	return text.split('\n').map(line => line.trim()).filter(line => line !== '');
}

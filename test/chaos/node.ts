/**
 * A worker node for one run: the daemon as a process in the namespaces of the run, its pods, its KVM host and its VMs;
 * and an inventory of all state, to detect leftovers. Provides the means to inject faults, but does not choose them.
 */
import {spawn} from 'node:child_process';
import {once} from 'node:events';
import {mkdtemp, readdir, readFile, rm, rmdir, truncate} from 'node:fs/promises';
import {connect, createServer} from 'node:net';
import {basename, dirname} from 'node:path';
import {fileURLToPath} from 'node:url';
import {isDeepStrictEqual} from 'node:util';
import {serviceAccountDirectory} from '../../src/kubernetes/service-account.ts';
import {abortable, pause, Scope} from '../../src/core/lifetime.ts';
import {Service} from '../lab/service.ts';
import {Shim} from '../lab/shim.ts';
import {NetworkTestbed, type Cni} from '../network/testbed.ts';
import type {TestApiServer} from '../support/api-server.ts';
import {baseVolume, pool, startTestDriverHost, type Fate, type TestDriverHost} from '../support/test-driver-host.ts';
import {FailingPrograms} from './failing-programs.ts';
import type {Ending, Loss, Spelling} from './script.ts';
import {leaseOf, Vms} from './vms.ts';

/** Short, because some faults wait for it. An undisturbed start takes a twentieth of it on a busy machine. */
const startTimeoutMs = 12_000;
const readyTimeoutMs = 120_000;
/** The documented limit is 5 s; the rest is for a slow machine. */
const deafLimitMs = 30_000;

/** The start-up checks have ended. They make calls and run programs, which must not count for the faults. */
const lookedAround = /"msg":"checks (?:passed|found failures)"/;

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
const apiWay = fileURLToPath(new URL('api-way.ts', import.meta.url));
const apiPort = 6443;
const clock = fileURLToPath(new URL('clock.ts', import.meta.url));
const {signal} = new AbortController();

export interface PodNetns {
	readonly name: string;
	/** As a path for the daemon. */
	readonly path: string;
}

/** The settings of the daemon that a round may change. */
export interface Settings {
	readonly startTimeoutMs: number;
	readonly orphanGraceMs: number;
	/** The error of the clock of the daemon. */
	readonly clockOffsetMs: number;
}

export interface NodeOptions {
	/**
	 * If set, PODS_DIR is a tmpfs of this size, e.g. `64k`, in the mount namespace of the daemon; otherwise a plain
	 * directory.
	 */
	readonly podsDirSize?: string;
	/** START_TIMEOUT, for starts that must outlast more than one fault. */
	readonly patienceMs?: number;
	/** ORPHAN_GRACE; by default longer than any round. */
	readonly orphanGraceMs?: number;
	/** The API server of the cluster of the node; no cluster if absent. */
	readonly api?: TestApiServer;
	/** Whether a relay process has the sockets of the shims. */
	readonly hasRelayProcess?: boolean;
	/** Additional settings of the daemon. */
	readonly environment?: Readonly<Record<string, string>>;
}

/** How the KVM host reacts to calls of the daemon. */
interface Decisions {
	onCall: ((procedure: string) => Fate | undefined) | undefined;
	hasLeases: boolean;
	isFull: boolean;
}

/** All state of the adaptor, by name. */
export type Inventory = ReadonlySet<string>;

export class ChaosNode implements AsyncDisposable {
	readonly #owned: AsyncDisposableStack;
	readonly #directory: string;
	readonly #testbed: NetworkTestbed;
	readonly #decide: Decisions;
	readonly host: TestDriverHost;
	readonly vms: Vms;
	readonly programs: FailingPrograms;
	readonly shim: Shim;
	/** Starts another daemon; resolves when it is ready. */
	readonly #begin: (settings: Settings) => Promise<Service>;
	readonly #usual: Settings;
	/** The settings of daemons that are started from now on. */
	#settings: Settings;
	#daemon: Service;
	/** In order of their start. */
	readonly #relayProcesses: Service[];
	/** Daemons that were ended on purpose. */
	readonly #expected = new WeakSet<Service>();
	/** Resolves when the replacement of a daemon is complete. Until then, the old daemon may end. */
	#replacing: Promise<void> = Promise.resolve();
	#pods = 0;
	readonly #idlePods: Record<Cni, PodNetns[]> = {bridge: [], calico: [], ptp: [], onlink: []};
	/** Daemons that ended unexpectedly, or could not be reached for too long. */
	readonly crashes: string[] = [];

	private constructor(
		owned: AsyncDisposableStack,
		directory: string,
		testbed: NetworkTestbed,
		decide: Decisions,
		host: TestDriverHost,
		vms: Vms,
		programs: FailingPrograms,
		begin: (settings: Settings) => Promise<Service>,
		settings: Settings,
		daemon: Service,
		relayProcesses: Service[],
	) {
		this.#relayProcesses = relayProcesses;
		this.#owned = owned;
		this.#directory = directory;
		this.#testbed = testbed;
		this.#decide = decide;
		this.host = host;
		this.vms = vms;
		this.programs = programs;
		this.shim = new Shim(`${directory}/hypervisor.sock`);
		this.#begin = begin;
		this.#usual = this.#settings = settings;
		this.#daemon = daemon;
		this.#watch(daemon);
	}

	static async start({
		podsDirSize,
		patienceMs = startTimeoutMs,
		orphanGraceMs = 120_000,
		api,
		hasRelayProcess = false,
		environment = {},
	}: NodeOptions = {}): Promise<ChaosNode> {
		await using undo = new AsyncDisposableStack();
		// A short path, because the directory contains sockets.
		const directory = await mkdtemp('/tmp/caat-');
		undo.defer(async () => rm(directory, {recursive: true, force: true}));
		const decide: Decisions = {onCall: undefined, hasLeases: true, isFull: false};
		const host = undo.use(
			await startTestDriverHost(directory, {
				onCall: procedure => decide.onCall?.(procedure),
				leaseOf: mac => (decide.hasLeases ? leaseOf(mac) : undefined),
				isFull: () => decide.isFull,
			}),
		);
		const testbed = undo.use(await NetworkTestbed.create());
		const vms = undo.use(await Vms.start(host, testbed, directory, signal));
		if (podsDirSize !== undefined) {
			await testbed.sh(`mkdir ${directory}/pods; mount -t tmpfs -o size=${podsDirSize} pods ${directory}/pods`);
		}

		const programs = await FailingPrograms.install(testbed, directory);
		const cluster = api === undefined ? {} : undo.use(await joinCluster(directory, testbed, api)).environment;
		const settings = {startTimeoutMs: patienceMs, orphanGraceMs, clockOffsetMs: 0};
		const begin = async (settings: Settings): Promise<Service> =>
			startDaemon(directory, testbed, host, settings, {
				...cluster,
				...(hasRelayProcess ? {RELAY_PROCESS: 'required'} : {}),
				...environment,
			});
		const relayProcesses = hasRelayProcess ? [undo.use(await startRelayProcess(directory, testbed))] : [];
		const daemon = await begin(settings);
		await daemon.line(lookedAround, AbortSignal.timeout(readyTimeoutMs));
		return new ChaosNode(
			undo.move(),
			directory,
			testbed,
			decide,
			host,
			vms,
			programs,
			begin,
			settings,
			daemon,
			relayProcesses,
		);
	}

	/** Called for each libvirt call of the daemon; returns its fault, if any. */
	set onCall(decide: ((procedure: string) => Fate | undefined) | undefined) {
		this.#decide.onCall = decide;
	}

	set hasLeases(has: boolean) {
		this.#decide.hasLeases = has;
	}

	set isFull(full: boolean) {
		this.#decide.isFull = full;
	}

	get settings(): Settings {
		return this.#settings;
	}

	/** The settings of daemons that are started from now on. */
	set settings(settings: Partial<Settings>) {
		this.#settings = {...this.#settings, ...settings};
	}

	/** The last log lines of the daemon. */
	get tail(): readonly string[] {
		return this.#daemon.tail.slice(-200);
	}

	/** Resolves when the current daemon has ended. */
	get ended(): Promise<number> {
		return this.#daemon.ended;
	}

	/** The newest relay process. */
	get relayProcess(): Service {
		return this.#relayProcesses.at(-1) as Service;
	}

	/** Starts another relay process, beside the running one if there is one. */
	async startRelayProcess(): Promise<void> {
		this.#relayProcesses.push(this.#owned.use(await startRelayProcess(this.#directory, this.#testbed)));
	}

	/** The socket of the hypervisor API. */
	get socketPath(): string {
		return `${this.#directory}/hypervisor.sock`;
	}

	/** The first matching log line of the daemon, past or future. */
	async line(pattern: RegExp, limit: AbortSignal): Promise<string> {
		return this.#daemon.line(pattern, limit);
	}

	/** Fills it to the last byte. */
	async fillPodsDir(): Promise<void> {
		await this.#testbed.sh(`! cat /dev/zero >>${this.#directory}/pods/fill 2>/dev/null`);
	}

	async emptyPodsDir(): Promise<void> {
		await this.#testbed.sh(`rm ${this.#directory}/pods/fill`);
	}

	/** Affects the running daemon and later ones. Open files, such as its lock, stay writable. */
	async makePodsDirReadOnly(): Promise<void> {
		const path = `${this.#directory}/pods`;
		await this.#testbed.sh(`mount --bind ${path} ${path}; mount -o remount,bind,ro ${path}`);
	}

	async makePodsDirWritable(): Promise<void> {
		await this.#testbed.sh(`umount --lazy ${this.#directory}/pods`);
	}

	/**
	 * Ends the daemon and starts another one; only one restart runs at a time. Returns when the signal is sent.
	 * @param meanwhile runs while there is no daemon
	 */
	restart(by: 'SIGKILL' | 'SIGTERM', meanwhile?: () => Promise<void>): void {
		const ending = this.#daemon;
		this.#expected.add(ending);
		ending.kill(by);
		this.#replacing = this.#replacing.then(async () => {
			if (this.#daemon === ending) {
				await ending.ended;
				await meanwhile?.();
				// If a fault prevents the start, start it again, like a kubelet.
				this.#daemon = await this.#begin(this.#settings).catch(async () => this.#begin(this.#settings));
				this.#watch(this.#daemon);
			}
		});
		this.#replacing.catch(() => undefined); // `settled` reports the error.
	}

	/**
	 * Starts another daemon beside the running one, like a rolling update.
	 * @returns the older one, which the caller must end
	 */
	async overlap(): Promise<Service> {
		const older = this.#daemon;
		this.#expected.add(older);
		this.#daemon = await this.#begin(this.#settings);
		this.#watch(this.#daemon);
		this.#owned.use(older);
		return older;
	}

	/**
	 * Starts another daemon beside the running one, which takes over. Resolves when it is ready.
	 * @returns a function that ends the new one. The older one then runs alone again, and must detect that; `settled`
	 * waits for it
	 */
	async overlapInVain(): Promise<(by: Ending) => void> {
		const older = this.#daemon;
		const newer = await this.#begin(this.#settings);
		this.#watch(newer);
		return by => {
			this.#expected.add(newer);
			newer.kill(by);
			this.#replacing = this.#replacing.then(async () => {
				await newer.ended;
				await Promise.race([this.#reachable(), older.ended]);
			});
			this.#replacing.catch(() => undefined); // `settled` reports the error.
		};
	}

	/** Starts another daemon beside the running one, and kills the older one when the new one is ready. */
	killPredecessor(): void {
		const older = this.#daemon;
		this.#expected.add(older);
		this.#replacing = this.#replacing.then(async () => {
			if (this.#daemon === older) {
				this.#daemon = await this.#begin(this.#settings);
				this.#watch(this.#daemon);
				older.kill('SIGKILL');
				await older.ended;
			}
		});
		this.#replacing.catch(() => undefined); // `settled` reports the error.
	}

	/** Waits until a daemon is ready. */
	async settled(): Promise<void> {
		await this.#replacing;
	}

	/** Restarts the daemon with other settings. Resolves when its start-up checks have ended. */
	async reconfigure(settings: Partial<Settings>): Promise<void> {
		this.settings = settings;
		this.restart('SIGTERM');
		await this.settled();
		await this.line(lookedAround, AbortSignal.timeout(readyTimeoutMs));
	}

	/** Restores the default settings, if they were changed. */
	async resetSettings(): Promise<void> {
		if (!isDeepStrictEqual(this.#settings, this.#usual)) {
			await this.reconfigure(this.#usual);
			this.#settings = this.#usual;
		}
	}

	recordPath(id: string): string {
		return this.#testbed.outside(`${this.#directory}/pods/${id}/sandbox.json`);
	}

	get identityPath(): string {
		return `${this.#directory}/tls/identity.json`;
	}

	async pod(cni: Cni): Promise<PodNetns> {
		const idle = this.#idlePods[cni].shift();
		if (idle !== undefined) {
			return idle;
		}

		const index = 2 + (this.#pods++ % 240);
		const name = `pod-${index}`;
		await this.#testbed.addPod(cni, index, name);
		return {name, path: `/run/netns/${name}`};
	}

	/** Keeps the pod for later use, if its namespace still exists. */
	async giveBack(cni: Cni, pod: PodNetns): Promise<void> {
		if ((await this.#testbed.sh(`[ ! -e ${pod.path} ] || echo there`)) !== '') {
			this.#idlePods[cni].push(pod);
		}
	}

	/** Removes the namespace of the pod, if it still exists. */
	async vanish({name, path}: PodNetns): Promise<void> {
		await this.#testbed.sh(`[ ! -e ${path} ] || ip netns del ${name}`);
	}

	async inventory(): Promise<Inventory> {
		const [domains, volumes, files, shown] = await Promise.all([
			this.host.domains(),
			this.host.volumes(),
			readdir(this.#testbed.outside(`${this.#directory}/pods`), {recursive: true}).catch(() => []),
			this.#testbed.sh(`
				for path in /run/netns/pod-*; do
					[ -e "$path" ] || continue
					nsenter --net="$path" sh -c 'ip -o link show type vxlan; tc qdisc show' | sed "s|^|\${path##*/} |"
				done
				ip -o link show type vxlan | sed 's|^|worker |'
				nft list set ip caa_peerpods tunnels`),
		]);
		const all = (pattern: RegExp, kind: string): string[] =>
			Array.from(shown.matchAll(pattern), ([, ...words]) => `${kind} ${words.join(' ')}`);
		return new Set([
			...domains.filter(name => name !== 'test').map(name => `domain ${name}`),
			...volumes.filter(name => name !== baseVolume).map(name => `volume ${name}`),
			// Lock files of daemons show which ones are at work. If a daemon is killed while it tests whether it can
			// write, its probe file may stay.
			...files.filter(name => !/^\.(?:daemon-\d+|caa-probe-[\da-f]+)$/v.test(name)).map(name => `file ${name}`),
			...all(/^(\S+) \d+: ([^:@]+)/gmv, 'tunnel'),
			...all(/^(\S+) qdisc (?:ingress|clsact) .*?\bdev (\S+)/gmv, 'redirection'),
			...all(/\b((?:\d+\.){3}\d+)\b/gv, 'bound'),
		]);
	}

	/** The leftovers compared to `before`: waits until there are none, or for a time limit. */
	async leftOver(before: Inventory): Promise<string[]> {
		using scope = new Scope(signal).deadline(120_000, 'everything to be gone');
		let left = [...(await this.inventory()).difference(before)];
		while (left.length > 0 && !scope.signal.aborted) {
			await pause(50, signal);
			left = [...(await this.inventory()).difference(before)];
		}

		return left;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#replacing.catch(() => undefined);
		this.#expected.add(this.#daemon);
		await this.#daemon.stop(60_000);
		await this.#owned.disposeAsync();
	}

	/** Waits until the API answers at the path of its socket. */
	async #reachable(): Promise<void> {
		const startedAt = performance.now();
		using scope = new Scope(signal).deadline(deafLimitMs, 'the older daemon to serve its socket again');
		try {
			while (
				!(await this.shim.version(scope.signal).then(
					() => true,
					() => false,
				))
			) {
				await pause(20, scope.signal);
			}
		} catch {
			this.crashes.push(
				`the older daemon cannot be reached ${Math.round(performance.now() - startedAt)} ms after the end of its successor`,
			);
		}
	}

	#watch(daemon: Service): void {
		void daemon.ended.then(status => {
			if (!this.#expected.has(daemon)) {
				this.crashes.push(`the daemon ended by itself with ${status}: ${daemon.tail.slice(-5).join(' | ')}`);
				if (daemon === this.#daemon) {
					this.restart('SIGKILL');
				}
			}
		});
	}
}

/** Another spelling of a path in /run. */
export function spelled(path: string, spelling: Spelling): string {
	switch (spelling) {
		case 'dots': {
			return path.replace(/^\/run\/(?<directory>\w+)\//v, '/run/$<directory>/../$<directory>/');
		}

		case 'slashes': {
			return path.replace(/^\/run\//v, '/run//');
		}

		case 'symbolic link': {
			// Filesystem Hierarchy Standard 3.0, section 5.13.
			return `/var${path}`;
		}
	}
}

/** @returns the environment of a pod; its files are at the usual paths of a pod */
async function joinCluster(
	directory: string,
	testbed: NetworkTestbed,
	api: TestApiServer,
): Promise<AsyncDisposable & {readonly environment: Readonly<Record<string, string>>}> {
	await using undo = new AsyncDisposableStack();
	const path = `${directory}/api.sock`;
	const server = undo.adopt(
		createServer(way => {
			const other = connect(api.address.port, api.address.host);
			for (const [from, to] of [
				[way, other],
				[other, way],
			] as const) {
				from.on('error', () => to.destroy()).once('close', () => to.destroy());
				from.pipe(to);
			}
		}),
		server => void server.close(),
	);
	server.listen(path);
	await once(server, 'listening');
	const argv = [
		'--pdeathsig',
		'KILL',
		'--',
		...testbed.shell.slice(0, -1),
		process.execPath,
		apiWay,
		String(apiPort),
		path,
	];
	const way = undo.use(
		new Service(
			'the way to the API server',
			spawn('setpriv', argv, {cwd: '/', stdio: ['ignore', 'ignore', 'pipe']}),
		),
	);
	await way.line(/^ready$/, signal);
	await testbed.sh(
		`mkdir -p ${serviceAccountDirectory}; mount --bind ${api.accountDirectory} ${serviceAccountDirectory}`,
	);
	const resources = undo.move();
	return {
		environment: {KUBERNETES_SERVICE_HOST: api.address.host, KUBERNETES_SERVICE_PORT: String(apiPort)},
		[Symbol.asyncDispose]: async () => resources.disposeAsync(),
	};
}

/** Truncates or removes a file, as a crash or an operator might. @returns whether it existed */
export async function spoil(path: string, how: Loss): Promise<boolean> {
	const content = await readFile(path).catch(() => undefined);
	if (content === undefined) {
		return false;
	}

	if (how === 'torn') {
		await truncate(path, content.length >> 1);
	} else {
		await rm(path);
		// The directory of a sandbox is removed with its last file.
		await rmdir(dirname(path)).catch(() => undefined);
	}

	return true;
}

/**
 * Removes the file that the daemon has set aside, like an operator who has inspected it.
 * @returns whether there was one
 */
export async function clearAside(path: string): Promise<boolean> {
	const directory = dirname(path);
	const names = await readdir(directory).catch(() => []);
	const aside = names.filter(name => name.startsWith(basename(path)) && /\.(?:bad|unusable-[\da-f]+)$/v.test(name));
	await Promise.all(aside.map(async name => rm(`${directory}/${name}`)));
	// The directory of a sandbox is removed with its last file.
	await rmdir(directory).catch(() => undefined);
	return aside.length > 0;
}

async function startDaemon(
	directory: string,
	testbed: NetworkTestbed,
	host: TestDriverHost,
	{startTimeoutMs, orphanGraceMs, clockOffsetMs}: Settings,
	more: Readonly<Record<string, string>>,
): Promise<Service> {
	const preloaded = clockOffsetMs === 0 ? [] : ['--import', clock];
	return startProgram('the daemon', testbed, [process.execPath, ...preloaded, main, 'libvirt'], {
		HOME: directory,
		LIBVIRT_URI: `test:///default?socket=${host.socketPath}`,
		LIBVIRT_POOL: pool,
		LIBVIRT_VOL_NAME: baseVolume,
		CLUSTER_ID: 'chaos',
		NODE_NAME: 'worker-0',
		REMOTE_HYPERVISOR_ENDPOINT: `${directory}/hypervisor.sock`,
		PODS_DIR: `${directory}/pods`,
		START_TIMEOUT: `${startTimeoutMs}ms`,
		ORPHAN_GRACE: `${orphanGraceMs}ms`,
		LIBVIRT_CPU: '1',
		LIBVIRT_MEMORY: '256',
		LIBVIRT_ROOT_DISK_SIZE: '1',
		LOG_LEVEL: 'debug',
		CLOCK_OFFSET_MS: String(clockOffsetMs),
		...more,
	});
}

async function startRelayProcess(directory: string, testbed: NetworkTestbed): Promise<Service> {
	// As in its DaemonSet: root without capabilities.
	const unprivileged = ['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--no-new-privs'];
	return startProgram('the relay process', testbed, [...unprivileged, process.execPath, main, 'relay'], {
		HOME: directory,
		REMOTE_HYPERVISOR_ENDPOINT: `${directory}/hypervisor.sock`,
		LOG_LEVEL: 'debug',
	});
}

/** Starts it in the namespaces of the testbed. Resolves when it is ready. */
async function startProgram(
	name: string,
	testbed: NetworkTestbed,
	command: readonly string[],
	environment: Readonly<Record<string, string>>,
): Promise<Service> {
	const argv = ['--pdeathsig', 'KILL', '--', ...testbed.shell.slice(0, -1), ...command];
	const child = spawn('setpriv', argv, {
		cwd: '/',
		stdio: ['ignore', 'ignore', 'pipe'],
		env: {PATH: process.env['PATH'], ...environment},
	});
	const service = new Service(name, child);
	using scope = new Scope(signal).deadline(readyTimeoutMs, `${name} to be ready`);
	await abortable(service.line(/"msg":"ready"/, scope.signal), scope.signal);
	return service;
}

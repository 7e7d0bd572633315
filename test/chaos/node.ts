/**
 * A worker node for one run: the daemon as a process of its own in namespaces of the run's, its pods, its KVM host, its
 * VMs; and the list of everything there is, by which nothing left over goes unnoticed. Knows nothing of faults but
 * where they can be made.
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

/** Short: some faults wait for it. A start that nothing disturbs takes a twentieth of it on a busy machine. */
const startTimeoutMs = 12_000;
const readyTimeoutMs = 120_000;
/** 5 s are promised; the rest is for a slow machine. */
const deafLimitMs = 30_000;

/** Said once: its own look around would take the calls and programs that faults are meant for. */
const lookedAround = /"msg":"checks (?:passed|found failures)"/;

const main = fileURLToPath(new URL('../../src/main.ts', import.meta.url));
const apiWay = fileURLToPath(new URL('api-way.ts', import.meta.url));
const apiPort = 6443;
const clock = fileURLToPath(new URL('clock.ts', import.meta.url));
const {signal} = new AbortController();

export interface PodNetns {
	readonly name: string;
	/** As the daemon sees it. */
	readonly path: string;
}

/** Those of the daemon's that a round may need otherwise. */
export interface Settings {
	readonly startTimeoutMs: number;
	readonly orphanGraceMs: number;
	/** By how much the daemon's clock is wrong. */
	readonly clockOffsetMs: number;
}

export interface NodeOptions {
	/** PODS_DIR is a tmpfs of this size, e.g. `64k`, in the daemon's mount namespace; a plain directory if absent. */
	readonly podsDirSize?: string;
	/** START_TIMEOUT, where a start has to outlast more than a fault. */
	readonly patienceMs?: number;
	/** ORPHAN_GRACE; longer than anything takes if absent. */
	readonly orphanGraceMs?: number;
	/** The node is one of this server's cluster; of none if absent. */
	readonly api?: TestApiServer;
	/** The sockets of the shims are in a relay process. */
	readonly hasRelayProcess?: boolean;
	/** Settings of the daemon's besides. */
	readonly environment?: Readonly<Record<string, string>>;
}

/** What the KVM host does with calls of the daemon. */
interface Decisions {
	onCall: ((procedure: string) => Fate | undefined) | undefined;
	hasLeases: boolean;
	isFull: boolean;
}

/** Everything of the adaptor's, by name. */
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
	/** Another daemon; resolves when it is ready. */
	readonly #begin: (settings: Settings) => Promise<Service>;
	readonly #usual: Settings;
	/** Of the daemons that begin from now on. */
	#settings: Settings;
	#daemon: Service;
	/** The newest last. */
	readonly #relayProcesses: Service[];
	/** Daemons that were told to end. */
	readonly #expected = new WeakSet<Service>();
	/** The daemon that is meant to run, once it does; ends are expected of the one before. */
	#replacing: Promise<void> = Promise.resolve();
	#pods = 0;
	readonly #idlePods: Record<Cni, PodNetns[]> = {bridge: [], calico: [], ptp: [], onlink: []};
	/** Of daemons that ended without being told to, or could not be reached for longer than they may. */
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
		// Short: sockets are in it.
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

	/** Hears of every call that the daemon makes of libvirt, and decides on it. */
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

	/** Of the daemons that begin from now on. */
	set settings(settings: Partial<Settings>) {
		this.#settings = {...this.#settings, ...settings};
	}

	/** What the daemon said last. */
	get tail(): readonly string[] {
		return this.#daemon.tail.slice(-200);
	}

	/** Settles when the daemon that runs now has ended. */
	get ended(): Promise<number> {
		return this.#daemon.ended;
	}

	/** The newest relay process. */
	get relayProcess(): Service {
		return this.#relayProcesses.at(-1) as Service;
	}

	/** Starts another relay process, beside the one that runs if it does. */
	async startRelayProcess(): Promise<void> {
		this.#relayProcesses.push(this.#owned.use(await startRelayProcess(this.#directory, this.#testbed)));
	}

	/** Of the hypervisor API. */
	get socketPath(): string {
		return `${this.#directory}/hypervisor.sock`;
	}

	/** The first line of the daemon's that matches, said already or to come. */
	async line(pattern: RegExp, limit: AbortSignal): Promise<string> {
		return this.#daemon.line(pattern, limit);
	}

	/** Until there is no room for another byte. */
	async fillPodsDir(): Promise<void> {
		await this.#testbed.sh(`! cat /dev/zero >>${this.#directory}/pods/fill 2>/dev/null`);
	}

	async emptyPodsDir(): Promise<void> {
		await this.#testbed.sh(`rm ${this.#directory}/pods/fill`);
	}

	/** For the daemon that runs and for those that begin; files that it has open stay as they are, such as its lock. */
	async makePodsDirReadOnly(): Promise<void> {
		const path = `${this.#directory}/pods`;
		await this.#testbed.sh(`mount --bind ${path} ${path}; mount -o remount,bind,ro ${path}`);
	}

	async makePodsDirWritable(): Promise<void> {
		await this.#testbed.sh(`umount --lazy ${this.#directory}/pods`);
	}

	/**
	 * Ends the daemon and starts another, once at a time. Returns when the signal is sent.
	 * @param meanwhile while none runs
	 */
	restart(by: 'SIGKILL' | 'SIGTERM', meanwhile?: () => Promise<void>): void {
		const ending = this.#daemon;
		this.#expected.add(ending);
		ending.kill(by);
		this.#replacing = this.#replacing.then(async () => {
			if (this.#daemon === ending) {
				await ending.ended;
				await meanwhile?.();
				// What a fault keeps from starting is started again, as a kubelet does.
				this.#daemon = await this.#begin(this.#settings).catch(async () => this.#begin(this.#settings));
				this.#watch(this.#daemon);
			}
		});
		this.#replacing.catch(() => undefined); // `settled` tells
	}

	/**
	 * Starts another daemon beside the one that runs, as a rolling update does.
	 * @returns the older one, whose end is its caller's business
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
	 * Starts another daemon beside the one that runs: it takes everything over. Resolves when it is ready.
	 * @returns how it ends again. The older one is alone then as before, and has to notice; `settled` waits until it
	 * has
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
			this.#replacing.catch(() => undefined); // `settled` tells
		};
	}

	/** Starts another daemon beside the one that runs, and kills the older one when the newer is ready. */
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
		this.#replacing.catch(() => undefined); // `settled` tells
	}

	/** Resolves when a daemon is ready. */
	async settled(): Promise<void> {
		await this.#replacing;
	}

	/** Another daemon, with other settings. Resolves when it has looked around. */
	async reconfigure(settings: Partial<Settings>): Promise<void> {
		this.settings = settings;
		this.restart('SIGTERM');
		await this.settled();
		await this.line(lookedAround, AbortSignal.timeout(readyTimeoutMs));
	}

	/** If they are not as usual. */
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

	/** For the next that wants one, if it is still there. */
	async giveBack(cni: Cni, pod: PodNetns): Promise<void> {
		if ((await this.#testbed.sh(`[ ! -e ${pod.path} ] || echo there`)) !== '') {
			this.#idlePods[cni].push(pod);
		}
	}

	/** If it is still there. */
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
			// Those of daemons tell which of them are at work; a daemon that is killed as it tries whether it can write
			// may leave a page.
			...files.filter(name => !/^\.(?:daemon-\d+|caa-probe-[\da-f]+)$/v.test(name)).map(name => `file ${name}`),
			...all(/^(\S+) \d+: ([^:@]+)/gmv, 'tunnel'),
			...all(/^(\S+) qdisc (?:ingress|clsact) .*?\bdev (\S+)/gmv, 'redirection'),
			...all(/\b((?:\d+\.){3}\d+)\b/gv, 'bound'),
		]);
	}

	/** What there is besides `before`, once that is nothing or after a time limit. */
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

	/** Until the API answers by the path of its socket. */
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

/** Another way to write a path in /run. */
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

/** @returns what a pod has in its environment; its files are where they are in a pod */
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

/** Does to a file what a crash may, or an operator. @returns whether there was one */
export async function spoil(path: string, how: Loss): Promise<boolean> {
	const content = await readFile(path).catch(() => undefined);
	if (content === undefined) {
		return false;
	}

	if (how === 'torn') {
		await truncate(path, content.length >> 1);
	} else {
		await rm(path);
		// A sandbox's goes with its last file.
		await rmdir(dirname(path)).catch(() => undefined);
	}

	return true;
}

/**
 * Takes away what the daemon has set aside in a file's place, as an operator does who has looked at it.
 * @returns whether there was something
 */
export async function clearAside(path: string): Promise<boolean> {
	const directory = dirname(path);
	const names = await readdir(directory).catch(() => []);
	const aside = names.filter(name => name.startsWith(basename(path)) && /\.(?:bad|unusable-[\da-f]+)$/v.test(name));
	await Promise.all(aside.map(async name => rm(`${directory}/${name}`)));
	// A sandbox's goes with its last file.
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
	// As its DaemonSet runs it: root without capabilities.
	const unprivileged = ['setpriv', '--bounding-set=-all', '--inh-caps=-all', '--no-new-privs'];
	return startProgram('the relay process', testbed, [...unprivileged, process.execPath, main, 'relay'], {
		HOME: directory,
		REMOTE_HYPERVISOR_ENDPOINT: `${directory}/hypervisor.sock`,
		LOG_LEVEL: 'debug',
	});
}

/** In the namespaces of the testbed. Resolves when it is ready. */
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

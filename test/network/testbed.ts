/**
 * A node, pods and VMs for one test, out of network namespaces inside a mount and a network namespace of its own:
 * nothing of the machine's network is touched, and with the last process everything is gone. The outermost network
 * namespace plays the worker node.
 */
import {spawn, type ChildProcess} from 'node:child_process';
import {once} from 'node:events';
import {createInterface} from 'node:readline';
import type {Readable} from 'node:stream';
import {text} from 'node:stream/consumers';
import {fileURLToPath} from 'node:url';
import {silentLogger, type Logger} from '../../src/core/log.ts';
import {createPodNetworks, type KernelPodNetworks, type PodNetworksOptions} from '../../src/network/pod-networks.ts';
import type {PodNetwork} from '../../src/sandbox/ports.ts';

export const workerAddress = '192.168.122.10';
/** The libvirt host's end of the VMs' network: an address in the VMs' subnet that nobody here has. */
const gatewayOfVms = '192.168.122.1';
/** Not the caller's: under npm, `nft` would be a program of node_modules/.bin (@vercel/nft). */
const env = {PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C'};
const peer = fileURLToPath(new URL('peer.ts', import.meta.url));

/** How a CNI plugin leaves a pod. */
export type Cni = 'bridge' | 'calico' | 'ptp' | 'onlink';
export const cnis: readonly Cni[] = ['bridge', 'calico', 'ptp', 'onlink'];

/** `index` from 2 to 250 makes addresses, names and MACs. */
export const podAddress = (cni: Cni, index: number): string =>
	`${{bridge: '10.244.0', calico: '10.1.2', ptp: '10.22.0', onlink: '10.0.3'}[cni]}.${index}`;
export const vmAddress = (index: number): string => `192.168.122.${100 + index}`;

export class NetworkTestbed implements AsyncDisposable {
	readonly #holder: ChildProcess;
	readonly #pid: number;
	readonly #peers = new Set<ChildProcess>();

	private constructor(holder: ChildProcess, pid: number) {
		this.#holder = holder;
		this.#pid = pid;
	}

	static async create(): Promise<NetworkTestbed> {
		const holder = spawn(
			'setpriv',
			[
				'--pdeathsig',
				'KILL',
				'--',
				'unshare',
				'--mount',
				'--net',
				'--',
				'sh',
				'-euc',
				`
			mount -t tmpfs tmpfs /run
			mount -t sysfs sysfs /sys
			mkdir /run/netns
			ip link set lo up
			sysctl -qw net.ipv4.ip_forward=1
			ip link add virbr0 type bridge
			ip addr add ${workerAddress}/24 dev virbr0
			ip link set virbr0 up
			ip link add cni0 type bridge
			ip addr add 10.244.0.1/24 dev cni0
			ip link set cni0 up
			echo ready
			exec cat >/dev/null
		`,
			],
			{stdio: ['pipe', 'pipe', 'inherit'], env},
		);
		if ((await firstLine(holder.stdout)) !== 'ready' || holder.pid === undefined) {
			throw new Error('No namespaces: root and all capabilities are needed');
		}

		return new NetworkTestbed(holder, holder.pid);
	}

	/** The shell for the spawn server: in the worker's namespaces. */
	get shell(): readonly string[] {
		return ['nsenter', `--mount=/proc/${this.#pid}/ns/mnt`, `--net=/proc/${this.#pid}/ns/net`, '--', '/bin/sh'];
	}

	get ownNetns(): string {
		return `/proc/${this.#pid}/ns/net`;
	}

	/** A path that is valid in the worker's mount namespace and in ours. */
	netnsPath(name: string): string {
		return this.outside(`/run/netns/${name}`);
	}

	/** A path of the worker's mount namespace as it is in ours. */
	outside(path: string): string {
		return `/proc/${this.#pid}/root${path}`;
	}

	/** Options that make the implementation work in here. */
	options(more: Partial<PodNetworksOptions> = {}): PodNetworksOptions {
		return {
			underlay: {vmAddress: async () => gatewayOfVms},
			vxlanPort: 4789,
			vxlanMinId: 555_000,
			podSubnetCidrs: [],
			externalNetViaPodVm: false,
			log: silentLogger,
			spawnServer: {shell: this.shell},
			ownNetns: this.ownNetns,
			...more,
		};
	}

	networks(more: Partial<PodNetworksOptions> = {}): KernelPodNetworks {
		return createPodNetworks(this.options(more));
	}

	/** Runs a script in the worker's namespace, or in a named one, and returns what it prints. */
	async sh(script: string, netns?: string): Promise<string> {
		const child = this.#spawn(['sh', '-euc', script], netns);
		const [output, errors] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
		if (child.exitCode !== 0) {
			throw new Error(`${script} ended with ${child.exitCode ?? child.signalCode ?? ''}: ${errors}`);
		}

		return output;
	}

	/** A pod as the CNI plugin leaves it. */
	async addPod(cni: Cni, index: number, name = `pod-${index}`): Promise<string> {
		const address = podAddress(cni, index);
		const host = `${cni}${index}`;
		const inPod = {
			bridge: `
				ip addr add ${address}/24 dev eth0
				ip route add default via 10.244.0.1`,
			calico: `
				ip addr add ${address}/32 dev eth0
				ip route add 169.254.1.1 dev eth0 scope link
				ip route add default via 169.254.1.1 dev eth0
				ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent`,
			ptp: `
				ip addr add ${address}/24 dev eth0 noprefixroute
				ip route add 10.22.0.1 dev eth0 scope link src ${address}
				ip route add 10.22.0.0/24 via 10.22.0.1 src ${address}
				ip route add default via 10.22.0.1`,
			onlink: `
				ip addr add ${address}/32 dev eth0
				ip route add default via 169.254.1.1 dev eth0 onlink`,
		}[cni];
		const onWorker = {
			bridge: `ip link set ${host} master cni0 up`,
			calico: `
				ip link set ${host} address ee:ee:ee:ee:ee:ee up
				ip route add ${address} dev ${host} scope link`,
			ptp: `
				ip addr add 10.22.0.1/32 dev ${host}
				ip link set ${host} up
				ip route add ${address} dev ${host} scope link`,
			onlink: `
				ip addr add 169.254.1.1/32 dev ${host}
				ip link set ${host} up
				ip route add ${address} dev ${host} scope link`,
		}[cni];
		await this.sh(`
			ip netns add ${name}
			ip link add ${host} type veth peer name eth0 netns ${name}
			${onWorker}
			nsenter --net=/run/netns/${name} sh -euc '
				ip link set lo up
				ip link set eth0 up
				${inPod}'
		`);
		return this.netnsPath(name);
	}

	/** A VM without its pod's network: a namespace in the VMs' subnet. */
	async addVm(index: number): Promise<string> {
		await this.sh(`
			ip netns add vm-${index}
			ip link add vm${index} type veth peer name enc1 netns vm-${index}
			ip link set vm${index} master virbr0 up
			nsenter --net=/run/netns/vm-${index} sh -euc '
				ip link set enc1 up
				ip addr add ${vmAddress(index)}/24 dev enc1'
		`);
		return vmAddress(index);
	}

	/**
	 * The VM's end, as the forwarder in the VM does it: cloud-api-adaptor, pkg/podnetwork/podnode.go. Fails where that
	 * would.
	 * @returns the namespace in the VM whose address is the pod's
	 */
	async configureVm(index: number, network: PodNetwork): Promise<string> {
		const name = `podns-${index}`;
		const length = network.podIp.split('/')[1];
		const routes = [...network.routes].sort((one, other) => Number(one.gw !== '') - Number(other.gw !== ''));
		const worker = network.workerNodeIp.split('/')[0] ?? '';
		const dev = network.interface;
		await this.sh(
			`
			ip netns del ${name} 2>/dev/null || :
			ip netns add ${name}
			ip link add ${dev} address ${network.podHwAddr} mtu ${Math.min(network.mtu, 1450)} netns /run/netns/${name} type vxlan id ${network.vxlanId} remote ${worker} dstport ${network.vxlanPort} nolearning`,
			`vm-${index}`,
		);
		await this.sh(
			`
			ip link set lo up
			ip addr add ${network.podIp} dev ${dev}
			ip link set ${dev} up
			${length === '32' ? '' : `ip route del "$(ip -o route show proto kernel | cut -d' ' -f1)" dev ${dev}`}
			${routes.map(({dst, gw, protocol = 'boot', scope}) => `ip route add ${dst} dev ${dev} ${gw === '' ? 'scope link' : `via ${gw}${scope === undefined ? '' : ` scope ${scope}`}`} proto ${protocol}`).join('\n')}
			${network.neighbors.map(({ip, hwAddr, state}) => `ip neigh add ${ip} lladdr ${hwAddr} dev ${dev} nud ${state}`).join('\n')}
`,
			name,
		);
		return name;
	}

	/** What the kernel says of a reservation; everything of it has to agree. */
	async tunnel(netnsPath: string, vni: number): Promise<'none' | 'reserved' | {readonly remote: string}> {
		const [shown, filters, elements] = await Promise.all([
			this.sh(`[ ! -e ${netnsPath} ] || nsenter --net=${netnsPath} ip -d -o link show vxlan1 2>/dev/null || :`),
			this.sh(
				`[ ! -e ${netnsPath} ] || nsenter --net=${netnsPath} tc filter show dev eth0 ingress 2>/dev/null || :`,
			),
			this.boundTunnels(),
		]);
		const listed = elements.filter(each => each.vni === vni).map(({address}) => address);
		const remote = new RegExp(`vxlan id ${vni} (?:remote (\\S+) )?`, 'v').exec(shown);
		const states = {
			tunnel: remote !== null,
			remote: remote?.[1],
			redirected: filters.includes('to device vxlan1'),
			bound: listed.length > 0,
		};
		if (!states.tunnel && !states.redirected && !states.bound) {
			return 'none';
		}

		if (states.tunnel && states.remote === undefined && !states.redirected && !states.bound) {
			return 'reserved';
		}

		if (states.remote !== undefined && states.redirected && listed.length === 1 && listed[0] === states.remote) {
			return {remote: states.remote};
		}

		throw new Error(`half of a tunnel: ${JSON.stringify(states)} ${shown} ${filters} ${JSON.stringify(elements)}`);
	}

	/** From whom the node accepts packets, and of which VNI. */
	async boundTunnels(): Promise<ReadonlyArray<{readonly address: string; readonly vni: number}>> {
		const shown = await this.sh('nft list set ip caa_peerpods tunnels 2>/dev/null || :');
		return Array.from(shown.matchAll(/((?:\d+\.){3}\d+) \. (\w+)/gv), ([, address = '', vni]) => ({
			address,
			vni: Number(vni),
		}));
	}

	/** A process in a namespace that answers on TCP port 8080 until it is disposed; see peer.ts. */
	async listen(netns: string): Promise<AsyncDisposable> {
		return this.serve(netns, [peer]);
	}

	/** A Node.js program in a namespace from its first line of output until it is disposed. */
	async serve(netns: string, program: readonly string[]): Promise<AsyncDisposable> {
		const child = this.#spawn([process.execPath, ...program], netns);
		if ((await firstLine(child.stdout)) === undefined) {
			throw new Error(`The peer in ${netns} ended: ${await text(child.stderr)}`);
		}

		return {[Symbol.asyncDispose]: async () => endOf(child)};
	}

	/** What the peer at an address answers to a request from a namespace. */
	async ask(netns: string, address: string, request: string): Promise<string> {
		return this.sh(`printf '${request}\\n' | nc -w 60 ${address} 8080`, netns);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await Promise.all(Array.from(this.#peers, endOf));
		await endOf(this.#holder);
	}

	#spawn(argv: readonly string[], netns?: string) {
		const net = netns === undefined ? `/proc/${this.#pid}/ns/net` : this.netnsPath(netns);
		const child = spawn(
			'setpriv',
			[
				'--pdeathsig',
				'KILL',
				'--',
				'nsenter',
				`--net=${net}`,
				`--mount=/proc/${this.#pid}/ns/mnt`,
				'--',
				...argv,
			],
			{stdio: ['ignore', 'pipe', 'pipe'], cwd: '/', env},
		);
		this.#peers.add(child);
		child.once('close', () => this.#peers.delete(child));
		return child;
	}
}

/** Undefined when it ends without one. */
async function firstLine(output: Readable): Promise<string | undefined> {
	const lines = createInterface({input: output});
	const [line] = await Promise.race([once(lines, 'line') as Promise<[string]>, once(lines, 'close').then(() => [])]);
	return line;
}

async function endOf(child: ChildProcess): Promise<void> {
	if (child.exitCode === null && child.signalCode === null) {
		child.kill('SIGKILL');
		await once(child, 'exit');
	}
}

/** Keeps the warnings of a log. */
export function warnings(): {readonly log: Logger; readonly reasons: string[]} {
	const reasons: string[] = [];
	const log: Logger = {...silentLogger, warn: ({reason}, message) => reasons.push(reason ?? message)};
	return {log, reasons};
}

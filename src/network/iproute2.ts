/**
 * The steps of a pod network as calls of ip and tc, one process each. Knows the commands, but not their order. `ip link
 * add … netns PATH` creates a device in another namespace while its tunnel stays in this one, and leaves nothing if it
 * fails. `ip -n` only accepts names, so commands inside a namespace use nsenter.
 */
import {neverAborts} from '../core/lifetime.ts';
import {CommandError, means} from './command-error.ts';
import {
	inspectionBatch,
	parseInspection,
	parseLinks,
	parseRouteAndLinks,
	type Inspection,
	type Link,
	type Route,
} from './inspection.ts';
import {tunnelInterface} from './plan.ts';
import type {SpawnServer} from './spawn-server.ts';

export interface Tunnel {
	readonly netnsPath: string;
	readonly vni: number;
	readonly port: number;
	/** Address of the VM. Absent: the tunnel is only reserved, and down. */
	readonly remote?: string;
}

/** The new target of an existing tunnel. */
export interface Pointing {
	readonly netnsPath: string;
	readonly vni: number;
	/** Address of the VM. */
	readonly remote: string;
	/** Stored as alias of the device, so that the next daemon can name the sandbox. Absent: the alias stays. */
	readonly sandboxId: string | undefined;
}

/** The temporary device of `probePort`. */
export const probeInterface = 'caa-probe';
/** Its VNI: the last one, which is rarely reserved. */
const probeVni = 0xff_ff_ff;

export class Iproute2 {
	readonly #programs: SpawnServer;

	constructor(programs: SpawnServer) {
		this.#programs = programs;
	}

	/** Lists links, routes and neighbours of a namespace. @throws CommandError 'no-netns' */
	async inspect(netnsPath: string, signal: AbortSignal): Promise<Inspection> {
		const argv = [...inNetns(netnsPath), 'ip', '-d', '-j', '-batch', '-'];
		return parseInspection(
			await this.#run('inspect the network of the pod', {netns: netnsPath}, argv, signal, inspectionBatch),
		);
	}

	/** The interfaces of the node, and its route to an address. @throws CommandError 'unreachable' */
	async routeTo(
		address: string,
		signal: AbortSignal,
	): Promise<{readonly route: Route; readonly links: readonly Link[]}> {
		const batch = `route get ${address}\naddr show\n`;
		return parseRouteAndLinks(
			await this.#run(
				'find the route to the network of the pod VMs',
				{address},
				['ip', '-d', '-j', '-batch', '-'],
				signal,
				batch,
			),
		);
	}

	/** The routing table entry of the node that matches an address. @throws CommandError 'unreachable' */
	async matchingRoute(address: string, signal: AbortSignal): Promise<Route> {
		const batch = `route get fibmatch ${address}\naddr show\n`;
		return parseRouteAndLinks(
			await this.#run(
				'find the route to the network of the pod VMs',
				{address},
				['ip', '-d', '-j', '-batch', '-'],
				signal,
				batch,
			),
		).route;
	}

	async links(signal: AbortSignal): Promise<Link[]> {
		return parseLinks(
			await this.#run('list the interfaces of the node', {}, ['ip', '-d', '-j', 'addr', 'show'], signal),
		);
	}

	/**
	 * @throws CommandError 'exists' if the namespace has a tunnel, 'vni-in-use' if any namespace of the node has a
	 * tunnel with this VNI
	 */
	async addTunnel({netnsPath, vni, port, remote}: Tunnel, signal: AbortSignal): Promise<void> {
		const state = remote === undefined ? [] : ['up'];
		const towards = remote === undefined ? [] : ['remote', remote];
		const argv = [
			'ip',
			'link',
			'add',
			tunnelInterface,
			'netns',
			netnsPath,
			...state,
			'type',
			'vxlan',
			'id',
			String(vni),
			...towards,
			'dstport',
			String(port),
			'nolearning',
		];
		await this.#run(
			remote === undefined ? 'reserve a VNI' : 'create the tunnel',
			{netns: netnsPath, vni},
			argv,
			signal,
		);
	}

	/** Points the tunnel at a VM and sets it up. @throws CommandError 'no-device', 'other-vni' */
	async pointTunnel({netnsPath, vni, remote, sandboxId}: Pointing, signal: AbortSignal): Promise<void> {
		const alias = sandboxId === undefined ? [] : ['alias', sandboxId];
		// Without `dstport`: the kernel refuses to change it. `ip link add` ignores an alias.
		const argv = [
			...inNetns(netnsPath),
			'ip',
			'link',
			'set',
			tunnelInterface,
			'up',
			...alias,
			'type',
			'vxlan',
			'id',
			String(vni),
			'remote',
			remote,
		];
		await this.#run('point the tunnel at the pod VM', {netns: netnsPath, vni, address: remote}, argv, signal);
	}

	/** Sets the tunnel down; its VNI stays reserved. @throws CommandError 'no-device', 'no-netns' */
	async lowerTunnel(netnsPath: string, signal: AbortSignal): Promise<void> {
		await this.#run(
			'set the tunnel down',
			{netns: netnsPath},
			[...inNetns(netnsPath), 'ip', 'link', 'set', tunnelInterface, 'down'],
			signal,
		);
	}

	/** @throws CommandError 'no-device', 'no-netns' */
	async removeTunnel(netnsPath: string, signal: AbortSignal): Promise<void> {
		await this.#run(
			'remove the tunnel',
			{netns: netnsPath},
			[...inNetns(netnsPath), 'ip', 'link', 'del', tunnelInterface],
			signal,
		);
	}

	/**
	 * Redirects incoming packets of the pod interface into the tunnel, and vice versa. Replaces filters of an earlier
	 * run, including those without a target. @throws CommandError 'other-qdisc'
	 */
	async redirect(netnsPath: string, dev: string, signal: AbortSignal): Promise<void> {
		const batch = [
			[dev, tunnelInterface],
			[tunnelInterface, dev],
		]
			.map(([from, to]) =>
				[
					`qdisc replace dev ${String(from)} ingress`,
					`filter replace dev ${String(from)} parent ffff: protocol all pref 1 handle 800::800 u32 match u32 0 0 action mirred egress redirect dev ${String(to)}`,
					'',
				].join('\n'),
			)
			.join('');
		await this.#run(
			'redirect the traffic of the pod',
			{netns: netnsPath, interface: dev},
			[...inNetns(netnsPath), 'tc', '-batch', '-'],
			signal,
			batch,
		);
	}

	/** @throws CommandError 'no-qdisc', 'no-device', 'no-netns' */
	async removeRedirection(netnsPath: string, dev: string, signal: AbortSignal): Promise<void> {
		await this.#run(
			'remove the redirection',
			{netns: netnsPath, interface: dev},
			[...inNetns(netnsPath), 'tc', 'qdisc', 'del', 'dev', dev, 'ingress'],
			signal,
		);
	}

	/**
	 * Whether no namespace of the node has a tunnel with this VNI. Creates and removes a device in one process, like
	 * `probePort`.
	 * @throws CommandError 'exists' during another such probe
	 */
	async isVniFree(vni: number, port: number, signal: AbortSignal): Promise<boolean> {
		const name = `caa-${vni}`;
		const batch = `link add ${name} type vxlan id ${vni} dstport ${port} nolearning\nlink del ${name}\n`;
		try {
			await this.#runWhole('check whether the VNI is in use', {vni, port}, batch, signal);
			return true;
		} catch (error) {
			if (means(error, 'vni-in-use')) {
				return false;
			}

			throw error;
		}
	}

	/**
	 * Whether tunnels can use the UDP port. Creates and removes a device in one process, so that nothing is left.
	 * @throws CommandError 'port-in-use'
	 */
	async probePort(port: number, signal: AbortSignal): Promise<void> {
		const batch = `link add ${probeInterface} up type vxlan id ${probeVni} dstport ${port} nolearning\nlink del ${probeInterface}\n`;
		await this.#runWhole('open the VXLAN port', {port}, batch, signal);
	}

	/** Removes the device of a probe that was killed. Succeeds if there is none. */
	async removeProbe(signal: AbortSignal): Promise<void> {
		try {
			await this.#run('remove the probe of the VXLAN port', {}, ['ip', 'link', 'del', probeInterface], signal);
		} catch (error) {
			if (!means(error, 'no-device')) {
				throw error;
			}
		}
	}

	/** Runs a batch that the signal of the caller does not end in the middle, since that would leave the device. */
	async #runWhole(
		what: string,
		where: Readonly<Record<string, string | number>>,
		batch: string,
		signal: AbortSignal,
	): Promise<void> {
		signal.throwIfAborted();
		await this.#run(what, where, ['ip', '-batch', '-'], neverAborts, batch);
		signal.throwIfAborted();
	}

	async #run(
		what: string,
		where: Readonly<Record<string, string | number>>,
		argv: readonly string[],
		signal: AbortSignal,
		stdin = '',
	): Promise<string> {
		const result = await this.#programs.run({argv, stdin}, signal);
		if (result.status !== 0) {
			throw new CommandError(what, argv.find(word => word === 'ip' || word === 'tc') ?? '', result, where);
		}

		return result.stdout;
	}
}

/** In front of a command: it then runs in the namespace. */
export function inNetns(netnsPath: string): readonly string[] {
	return ['nsenter', `--net=${netnsPath}`, '--'];
}

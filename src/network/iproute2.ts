/**
 * The steps of a pod's network as calls of ip and tc: one process each. Knows the commands, not when they are due. `ip
 * link add … netns PATH` makes a device for another namespace while its tunnel stays in ours, and leaves nothing when
 * it fails; `ip -n` would take names only, so what is done inside a namespace goes through nsenter.
 */
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
	/** The VM. Absent: reserved only, and down. */
	readonly remote?: string;
}

/** What an existing tunnel is changed to. */
export interface Pointing {
	readonly netnsPath: string;
	readonly vni: number;
	/** The VM. */
	readonly remote: string;
	/** Noted with the device, so that the next daemon can name the sandbox. Absent: what is noted stays. */
	readonly sandboxId: string | undefined;
}

/** The device that `probePort` makes and removes. */
export const probeInterface = 'caa-probe';
/** Its VNI: at the far end of what is ever reserved. */
const probeVni = 0xff_ff_ff;

export class Iproute2 {
	readonly #programs: SpawnServer;

	constructor(programs: SpawnServer) {
		this.#programs = programs;
	}

	/** What there is in a namespace. @throws CommandError 'no-netns' */
	async inspect(netnsPath: string, signal: AbortSignal): Promise<Inspection> {
		const argv = [...inside(netnsPath), 'ip', '-d', '-j', '-batch', '-'];
		return parseInspection(
			await this.#run("inspect the pod's network", {netns: netnsPath}, argv, signal, inspectionBatch),
		);
	}

	/** The node's own interfaces, and the route that it would take to an address. @throws CommandError 'unreachable' */
	async routeTo(
		address: string,
		signal: AbortSignal,
	): Promise<{readonly route: Route; readonly links: readonly Link[]}> {
		const batch = `route get ${address}\naddr show\n`;
		return parseRouteAndLinks(
			await this.#run(
				"find the way to the pod VMs' network",
				{address},
				['ip', '-d', '-j', '-batch', '-'],
				signal,
				batch,
			),
		);
	}

	/** The entry of the node's table that packets to an address go by. @throws CommandError 'unreachable' */
	async matchingRoute(address: string, signal: AbortSignal): Promise<Route> {
		const batch = `route get fibmatch ${address}\naddr show\n`;
		return parseRouteAndLinks(
			await this.#run(
				"find the way to the pod VMs' network",
				{address},
				['ip', '-d', '-j', '-batch', '-'],
				signal,
				batch,
			),
		).route;
	}

	async links(signal: AbortSignal): Promise<Link[]> {
		return parseLinks(
			await this.#run("list the node's interfaces", {}, ['ip', '-d', '-j', 'addr', 'show'], signal),
		);
	}

	/**
	 * @throws CommandError 'exists' when the namespace has a tunnel, 'vni-in-use' when the node has one with this VNI,
	 * in any namespace
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
			remote === undefined ? 'reserve a VNI' : 'make the tunnel',
			{netns: netnsPath, vni},
			argv,
			signal,
		);
	}

	/** Points the tunnel at a VM and raises it. @throws CommandError 'no-device', 'other-vni' */
	async pointTunnel({netnsPath, vni, remote, sandboxId}: Pointing, signal: AbortSignal): Promise<void> {
		const alias = sandboxId === undefined ? [] : ['alias', sandboxId];
		// Without `dstport`: a change that names it is refused. `ip link add` would ignore an alias.
		const argv = [
			...inside(netnsPath),
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

	/** Its VNI stays reserved. @throws CommandError 'no-device', 'no-netns' */
	async lowerTunnel(netnsPath: string, signal: AbortSignal): Promise<void> {
		await this.#run(
			'take the tunnel down',
			{netns: netnsPath},
			[...inside(netnsPath), 'ip', 'link', 'set', tunnelInterface, 'down'],
			signal,
		);
	}

	/** @throws CommandError 'no-device', 'no-netns' */
	async removeTunnel(netnsPath: string, signal: AbortSignal): Promise<void> {
		await this.#run(
			'remove the tunnel',
			{netns: netnsPath},
			[...inside(netnsPath), 'ip', 'link', 'del', tunnelInterface],
			signal,
		);
	}

	/**
	 * Sends what arrives at the pod's interface into the tunnel, and the other way round. Replaces what an earlier run
	 * left, also filters whose target is gone. @throws CommandError 'other-qdisc'
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
			"redirect the pod's traffic",
			{netns: netnsPath, interface: dev},
			[...inside(netnsPath), 'tc', '-batch', '-'],
			signal,
			batch,
		);
	}

	/** @throws CommandError 'no-qdisc', 'no-device', 'no-netns' */
	async removeRedirection(netnsPath: string, dev: string, signal: AbortSignal): Promise<void> {
		await this.#run(
			'remove the redirection',
			{netns: netnsPath, interface: dev},
			[...inside(netnsPath), 'tc', 'qdisc', 'del', 'dev', dev, 'ingress'],
			signal,
		);
	}

	/**
	 * Whether a tunnel with this VNI could be made, for there is none in any namespace: a device for a moment, in one
	 * process, as of `probePort`.
	 * @throws CommandError 'exists' while another asks the same
	 */
	async isVniFree(vni: number, port: number, signal: AbortSignal): Promise<boolean> {
		const name = `caa-${vni}`;
		const batch = `link add ${name} type vxlan id ${vni} dstport ${port} nolearning\nlink del ${name}\n`;
		try {
			await this.#run('look whether the VNI is in use', {vni, port}, ['ip', '-batch', '-'], signal, batch);
			return true;
		} catch (error) {
			if (means(error, 'vni-in-use')) {
				return false;
			}

			throw error;
		}
	}

	/**
	 * Whether tunnels can use the UDP port: a device that is up for a moment, in one process, so that nothing can be
	 * left over.
	 * @throws CommandError 'port-in-use'
	 */
	async probePort(port: number, signal: AbortSignal): Promise<void> {
		const batch = `link add ${probeInterface} up type vxlan id ${probeVni} dstport ${port} nolearning\nlink del ${probeInterface}\n`;
		await this.#run('open the VXLAN port', {port}, ['ip', '-batch', '-'], signal, batch);
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

function inside(netnsPath: string): string[] {
	return ['nsenter', `--net=${netnsPath}`, '--'];
}

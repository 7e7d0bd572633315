/** Lists all state of the adaptor in a lab. Tests compare it before and after, to detect leftovers. */
import {readdir} from 'node:fs/promises';
import {isDeepStrictEqual} from 'node:util';
import {pause, Scope} from '../../src/core/lifetime.ts';
import {virsh} from './kvm-host.ts';
import type {Lab} from './lab.ts';
import type {Namespaces} from './namespaces.ts';
import {names, paths} from './topology.ts';

export interface Inventory extends NetworkInventory {
	readonly domains: readonly string[];
	/** The volumes of the pool, without the base volume. */
	readonly volumes: readonly string[];
	/** The network interfaces of the domains. */
	readonly macs: readonly string[];
	/** The files below the directory of the adaptor, `/run/peerpod`, without sockets. */
	readonly files: readonly string[];
	readonly sockets: readonly string[];
}

/** The state in the worker and all its pods. */
interface NetworkInventory {
	/** VXLAN devices, as `<namespace>/<device>`. */
	readonly tunnels: readonly string[];
	/** Devices with an ingress filter, as `<namespace>/<device>`. */
	readonly redirections: readonly string[];
	/** The addresses of the VMs to which tunnels are bound. */
	readonly bound: readonly string[];
}

export async function takeInventory(namespaces: Namespaces, signal: AbortSignal): Promise<Inventory> {
	const [host, files, network] = await Promise.all([
		hostInventory(namespaces, signal),
		fileInventory(namespaces),
		networkInventory(namespaces, signal),
	]);
	return {...host, ...files, ...network};
}

/**
 * Polls until the condition holds. StopVM may answer before everything is removed, because a deletion continues without
 * its caller.
 * @throws DeadlineError that names what was awaited, after two minutes
 */
export async function inventoryWhen(
	what: string,
	holds: (now: Inventory) => boolean,
	lab: Pick<Lab, 'inventory'>,
	signal: AbortSignal,
): Promise<Inventory> {
	using scope = new Scope(signal).deadline(120_000, what);
	for (;;) {
		const now = await lab.inventory();
		if (holds(now)) {
			return now;
		}

		await pause(50, scope.signal);
	}
}

/** The expected inventory, or the actual one after a timeout. */
export async function settledInventory(
	wanted: Inventory,
	lab: Pick<Lab, 'inventory'>,
	signal: AbortSignal,
): Promise<Inventory> {
	return inventoryWhen('everything to be gone', now => isDeepStrictEqual(now, wanted), lab, signal).catch(async () =>
		lab.inventory(),
	);
}

async function hostInventory(
	namespaces: Namespaces,
	signal: AbortSignal,
): Promise<Pick<Inventory, 'domains' | 'volumes' | 'macs'>> {
	const domains = lines(await virsh(namespaces, ['list', '--all', '--name'], signal));
	// A domain that was removed in the meantime has no interfaces.
	const interfaces = await Promise.all(
		domains.map(async name => virsh(namespaces, ['domiflist', name], signal).catch(() => '')),
	);
	return {
		domains,
		// From the directory, not from libvirt: a file that libvirt does not know is a leftover too.
		volumes: (await readdir(namespaces.outside(names.images))).filter(name => name !== names.baseVolume).sort(),
		macs: interfaces.flatMap(table => table.match(/\b(?:[\da-f]{2}:){5}[\da-f]{2}\b/g) ?? []).sort(),
	};
}

async function fileInventory(namespaces: Namespaces): Promise<Pick<Inventory, 'files' | 'sockets'>> {
	const entries = await readdir(namespaces.outside(paths.peerpod), {recursive: true, withFileTypes: true}).catch(
		(error: unknown) => {
			if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
				return [];
			}

			throw error;
		},
	);
	const inside = (kept: typeof entries): string[] =>
		kept.map(entry => `${entry.parentPath}/${entry.name}`.slice(namespaces.outside('').length)).sort();
	return {
		// The checks of the running daemon write a file to test permissions, and a lock file shows that it is at work.
		// Other tests verify that both are removed.
		files: inside(
			entries.filter(
				entry => !entry.isDirectory() && !entry.isSocket() && !/^\.(?:caa-probe-|daemon-)/v.test(entry.name),
			),
		),
		sockets: inside(entries.filter(entry => entry.isSocket())),
	};
}

/** Empty for a pod that was removed in the meantime, and for a missing table. */
async function networkInventory(namespaces: Namespaces, signal: AbortSignal): Promise<NetworkInventory> {
	const [devices, set] = await Promise.all([
		namespaces.exec(
			'worker',
			[
				'sh',
				'-euc',
				`
			for path in /run/netns/*; do
				nsenter --net=$path sh -c 'ip -o link show type vxlan; tc qdisc show' 2>/dev/null | sed "s|^|\${path##*/} |"
			done
		`,
			],
			signal,
		),
		namespaces.exec('worker', ['sh', '-c', 'nft list set ip caa_peerpods tunnels 2>/dev/null || :'], signal),
	]);
	const all = (pattern: RegExp): string[] =>
		lines(devices)
			.flatMap(line => {
				const [, netns, device] = pattern.exec(line) ?? [];
				return netns === undefined || device === undefined ? [] : [`${netns}/${device}`];
			})
			.sort();
	return {
		// The checks of the daemon briefly create one to test whether the port is free.
		tunnels: all(/^(\S+) \d+: (?!caa-probe\b)([^:@]+)/),
		redirections: all(/^(\S+) qdisc (?:ingress|clsact) .*?\bdev (\S+)/),
		bound: (set.match(/\b(?:\d+\.){3}\d+\b/g) ?? []).sort(),
	};
}

function lines(text: string): string[] {
	return text
		.split('\n')
		.map(line => line.trim())
		.filter(line => line !== '');
}

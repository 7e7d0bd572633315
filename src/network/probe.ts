/**
 * Observes whether this node supports tunnels, and its route to the VMs. Leaves nothing behind and judges nothing.
 */
import {readFile} from 'node:fs/promises';
import type {
	GuardObservation,
	PortUser,
	ProgramsObservation,
	RouteObservation,
	VxlanPortObservation,
} from '../check/observations.ts';
import {present} from '../core/present.ts';
import {CommandError, means} from './command-error.ts';
import {Iproute2, probeInterface} from './iproute2.ts';
import {workerAddress} from './plan.ts';
import {SpawnServer, type SpawnServerOptions} from './spawn-server.ts';
import {Tenancies} from './tenancies.ts';
import {TunnelGuard} from './tunnel-guard.ts';
import {vniRange} from './vni.ts';

/** The command for the version of each program. */
const programs: Readonly<Record<string, readonly string[]>> = {
	ip: ['-V'],
	tc: ['-V'],
	nft: ['--version'],
	nsenter: ['--version'],
};
const statusOfNoProgram = 127;

export class NetworkProbe {
	readonly #programs: SpawnServer;
	readonly #iproute2: Iproute2;
	readonly #guard: TunnelGuard;
	readonly #port: number;

	constructor(spawnServer: SpawnServer, iproute2: Iproute2, guard: TunnelGuard, port: number) {
		this.#programs = spawnServer;
		this.#iproute2 = iproute2;
		this.#guard = guard;
		this.#port = port;
	}

	/** Also verifies permissions. @throws CommandError 'not-permitted', or another error of the programs */
	async observePrograms(signal: AbortSignal): Promise<ProgramsObservation> {
		const versions = Object.fromEntries(
			await Promise.all(
				Object.entries(programs).map(async ([program, args]) => {
					const {status, stdout} = await this.#programs.run({argv: [program, ...args]}, signal);
					return [
						program,
						status === statusOfNoProgram
							? null
							: (/\d+(?:\.\d+)+/v.exec(stdout)?.[0] ?? 'of unknown version'),
					] as const;
				}),
			),
		);
		if (versions['nft'] !== null) {
			// Only a check: the kernel discards the change.
			await this.#succeed('change nftables', ['nft', '-c', 'add table ip caa_probe'], signal);
		}

		if (versions['nsenter'] !== null) {
			await this.#succeed(
				'enter a network namespace',
				['nsenter', '--net=/proc/self/ns/net', '--', 'true'],
				signal,
			);
		}

		return {versions};
	}

	/**
	 * Observes whether tunnels can be bound to their VMs, and how many are.
	 * @throws CommandError 'unsupported', or another error of nft
	 */
	async observeGuard(signal: AbortSignal): Promise<GuardObservation> {
		await this.#guard.check(signal);
		const {tunnels, legacy, dropped} = await this.#guard.read(signal);
		return {bound: tunnels.length, unbound: legacy.length, dropped};
	}

	async observeVxlanPort(signal: AbortSignal): Promise<VxlanPortObservation> {
		const sharing = (await this.#iproute2.links(signal))
			.filter(({name, vxlan}) => vxlan?.port === this.#port && name !== probeInterface)
			.map(({name}) => name);
		const isFree = await this.#canOpenPort(signal);
		const sockets = await this.#udpSockets(signal);
		return {
			isFree,
			sharing,
			programs: isFree ? [] : await programsAt(this.#port, sockets),
			freePort: freePort(sockets, this.#port),
		};
	}

	/** @throws CommandError 'unreachable' */
	async observeRoute(address: string, signal: AbortSignal): Promise<RouteObservation> {
		const {dst, gateway, dev} = await this.#iproute2.matchingRoute(address, signal);
		return {dst, ...present({gateway, dev})};
	}

	/**
	 * Checks whether the interface can be the local end of tunnels.
	 * @throws AdaptorError 'failed-precondition', like the creation of a tunnel
	 */
	async checkHostInterface(name: string, signal: AbortSignal): Promise<void> {
		workerAddress(await this.#iproute2.links(signal), {hostInterface: name});
	}

	async #canOpenPort(signal: AbortSignal): Promise<boolean> {
		try {
			await this.#iproute2.probePort(this.#port, signal);
			return true;
		} catch (error) {
			if (means(error, 'port-in-use')) {
				return false;
			}

			// The probe of another daemon at this moment, or of one that was killed: the port is usable. Removing the
			// device of the other daemon does not disturb it.
			if (means(error, 'exists', 'vni-in-use')) {
				await this.#iproute2.removeProbe(signal);
				return true;
			}

			if (means(error, 'no-device')) {
				return true;
			}

			throw error;
		}
	}

	async #udpSockets(signal: AbortSignal): Promise<readonly UdpSocket[]> {
		const {stdout} = await this.#programs.run({argv: ['ss', '-Hulnp']}, signal);
		return parseUdpSockets(stdout);
	}

	async #succeed(what: string, argv: readonly string[], signal: AbortSignal): Promise<void> {
		const result = await this.#programs.run({argv}, signal);
		if (result.status !== 0) {
			throw new CommandError(what, argv[0] ?? '', result, {});
		}
	}
}

/** A socket that is bound to a UDP port. */
interface UdpSocket {
	readonly port: number;
	/** Empty for sockets of the kernel. The kernel also hides programs in other process namespaces. */
	readonly programs: ReadonlyArray<{readonly name: string; readonly pid: number}>;
}

/** `UNCONN 0 0 0.0.0.0:9000 0.0.0.0:* users:(("nc",pid=12,fd=3))` */
function parseUdpSockets(output: string): readonly UdpSocket[] {
	return output
		.split('\n')
		.map(line => ({
			port: Number(/^\S+\s+\d+\s+\d+\s+\S+:(\d+)\s/v.exec(line)?.[1] ?? 0),
			programs: [...line.matchAll(/\("([^"]+)",pid=(\d+)/gv)].map(([, name = '', pid]) => ({
				name,
				pid: Number(pid),
			})),
		}))
		.filter(({port}) => port !== 0);
}

async function programsAt(wanted: number, sockets: readonly UdpSocket[]): Promise<readonly PortUser[]> {
	const users = new Map(
		sockets.filter(({port}) => port === wanted).flatMap(({programs: each}) => each.map(user => [user.pid, user])),
	);
	return Promise.all(
		[...users.values()].map(async ({name, pid}) => {
			// The arguments end with NULs. The name alone may be that of a thread.
			const text = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
			const commandLine = text.replace(/\0$/v, '').replaceAll('\0', ' ');
			return {name, pid, ...(commandLine === '' || commandLine === name ? {} : {commandLine})};
		}),
	);
}

/** What the samples use, or one near it. */
function freePort(sockets: readonly UdpSocket[], taken: number): number {
	const used = new Set([taken, ...sockets.map(({port}) => port)]);
	let port = usualPort;
	while (used.has(port)) {
		port++;
	}

	return port;
}

const usualPort = 9000;

export interface NetworkProbeOptions {
	readonly vxlanPort: number;
	readonly vxlanMinId: number;
	readonly spawnServer?: SpawnServerOptions;
}

/** A probe with its own shells, which end when it is disposed. */
export function createNetworkProbe({
	vxlanPort: port,
	vxlanMinId,
	spawnServer = {size: 2},
}: NetworkProbeOptions): NetworkProbe & AsyncDisposable {
	const shells = new SpawnServer(spawnServer);
	const iproute2 = new Iproute2(shells);
	const guard = new TunnelGuard(shells, iproute2, {port, ...vniRange(vxlanMinId)}, new Tenancies());
	return Object.assign(new NetworkProbe(shells, iproute2, guard, port), {
		[Symbol.asyncDispose]: async () => shells[Symbol.asyncDispose](),
	});
}

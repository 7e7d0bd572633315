/**
 * The pods' networks, wired by the kernel: in each pod's namespace a VXLAN device towards the pod's VM, and traffic redirected between it
 * and the pod's own interface, so that the pod's address is the VM's. Knows no libvirt and no VM but by address.
 *
 *   reserve   vxlan1 in the pod's namespace, down, without remote: holds the VNI, by the kernel's word, even while we are not running
 *   abandon   that device gone, without knowing what its VNI is
 *   attach    its remote, up, and the redirection both ways
 *   release   all of it gone, and with it the VNI; gone too when the namespace goes
 *   forget    what is outside of the namespace gone, without knowing which it was
 *
 * Each step converges from whatever an earlier run left in the middle of any step: what is there is taken over if it fits, else replaced.
 */
import {isIPv4} from 'node:net';
import {AdaptorError} from '../errors.ts';
import {Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import type {PodNetwork, PodNetworks, Presence, SandboxId} from '../sandbox/ports.ts';
import {CommandError, means} from './command-error.ts';
import type {Link} from './inspection.ts';
import {Iproute2} from './iproute2.ts';
import {checkNetns, isPodNetns} from './netns.ts';
import {ConntrackBypass} from './nft.ts';
import {NetworkProbe} from './probe.ts';
import {isReusable, planPodNetwork, tunnelInterface} from './plan.ts';
import {SpawnServer, type SpawnServerOptions} from './spawn-server.ts';
import {Underlay, type UnderlaySource} from './underlay.ts';
import {VniAllocator} from './vni.ts';

export interface PodNetworksOptions {
	readonly underlay: UnderlaySource;
	readonly vxlanPort: number;
	readonly vxlanMinId: number;
	/** IPv4 prefixes. */
	readonly podSubnetCidrs: readonly string[];
	readonly externalNetViaPodVm: boolean;
	readonly log: Logger;
	readonly spawnServer?: SpawnServerOptions;
	/** Of the node: the namespace that commands run in and that no pod may have. */
	readonly ownNetns?: string;
	readonly random?: () => number;
}

export interface KernelPodNetworks extends PodNetworks, AsyncDisposable {
	/**
	 * Whether this node can have tunnels: programs and permissions are there, the VXLAN port is free. Makes the NOTRACK table.
	 * @throws 'failed-precondition', 'permission-denied'
	 */
	check(signal: AbortSignal): Promise<void>;
	/** For those who look at this node, by the same shells. */
	readonly probe: NetworkProbe;
}

/** Starts the shells that everything runs through: call it early, while the process is small. */
export function createPodNetworks(options: PodNetworksOptions): KernelPodNetworks {
	return new Tunnels(options);
}

/** What this process knows of a namespace's tunnel. */
interface Tenancy {
	readonly sandboxId: SandboxId | undefined;
	readonly vni: number;
	/** Addresses that are, or may be, in the NOTRACK set for it: the VM's, and any before it until their removal has succeeded. */
	readonly remotes: Set<string>;
	/** An earlier run's, whose elements in the NOTRACK set we do not know. */
	readonly isAdopted: boolean;
}

/** For undoing what a caller gave up on. */
const undoTimeoutMs = 10_000;
/** A pod's tunnel that appears and disappears under our hands, because somebody else works on it, is tried this often. */
const maxAttempts = 3;

class Tunnels implements KernelPodNetworks {
	readonly probe: NetworkProbe;
	readonly #options: PodNetworksOptions;
	readonly #ownNetns: string;
	readonly #log: Logger;
	readonly #programs: SpawnServer;
	readonly #iproute2: Iproute2;
	readonly #bypass: ConntrackBypass;
	readonly #underlay: Underlay;
	readonly #vnis: VniAllocator;
	/** By the namespace's path. */
	readonly #tenancies = new Map<string, Tenancy>();
	readonly #life = new AbortController();

	constructor(options: PodNetworksOptions) {
		const {underlay, vxlanPort, vxlanMinId, log, spawnServer, ownNetns = '/proc/self/ns/net', random = Math.random} = options;
		this.#options = options;
		this.#ownNetns = ownNetns;
		this.#log = log;
		this.#programs = new SpawnServer(spawnServer);
		this.#iproute2 = new Iproute2(this.#programs);
		this.probe = new NetworkProbe(this.#programs, this.#iproute2, vxlanPort);
		this.#bypass = new ConntrackBypass(this.#programs, vxlanPort);
		this.#underlay = new Underlay(this.#iproute2, underlay, this.#life.signal);
		this.#vnis = new VniAllocator(vxlanMinId, random);
	}

	async check(signal: AbortSignal): Promise<void> {
		const {vxlanPort} = this.#options;
		const {isFree, sharing} = await this.probe.observeVxlanPort(signal);
		if (!isFree) {
			const users = sharing.join(', ');
			throw new AdaptorError({
				code: 'failed-precondition',
				what: `VXLAN_PORT ${vxlanPort} is in use on this node${users === '' ? '' : ` by ${users}, likely of the cluster's own network`}`,
				where: {port: vxlanPort},
				remedy: 'Set VXLAN_PORT to a free UDP port, for example 9000, which firewalls between node and KVM host let through.',
			});
		}

		for (const name of sharing) {
			this.#log.warn({port: vxlanPort, reason: `the interface ${name} uses it too`}, 'VXLAN port is shared');
		}

		await this.#bypass.change({}, signal);
	}

	async reserve(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<PodNetwork> {
		signal.throwIfAborted();
		this.#refuseSecondTenant(sandboxId, netnsPath);
		await checkNetns(netnsPath, this.#ownNetns);
		for (let attempt = 1; ; attempt++) {
			const {inspection, worker} = await settled({inspection: this.#iproute2.inspect(netnsPath, signal), worker: this.#underlay.address(signal)});
			const {network, warnings} = planPodNetwork(inspection, {...this.#options, netnsPath, worker});
			this.#refuseSecondTenant(sandboxId, netnsPath);
			try {
				const {vni, remote, isAdopted} = await this.#reserveVni(sandboxId, netnsPath, inspection.links, signal);
				this.#tenancies.set(netnsPath, {sandboxId, vni, remotes: new Set(remote === undefined ? [] : [remote]), isAdopted});
				for (const reason of warnings) {
					this.#log.warn({sandboxId, netns: netnsPath, reason}, 'pod network is not carried to the VM as a whole');
				}

				return {...network, vxlanId: vni, index: vni - this.#options.vxlanMinId};
			} catch (error) {
				if (!means(error, 'exists', 'no-device') || attempt >= maxAttempts) {
					throw error;
				}
			}
		}
	}

	async abandon(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		const tenancy = this.#tenancies.get(netnsPath);
		if ((tenancy !== undefined && tenancy.sandboxId !== sandboxId) || !await isPodNetns(netnsPath, this.#ownNetns)) {
			return;
		}

		await unlessGone(this.#removeReservation(netnsPath, signal));
		if (tenancy !== undefined && this.#tenancies.get(netnsPath) === tenancy) {
			this.#tenancies.delete(netnsPath);
			this.#vnis.release(tenancy.vni);
		}
	}

	async presence(_network: PodNetwork, _signal: AbortSignal): Promise<Presence> {
		return 'unknown';
	}

	async identify(network: PodNetwork, _signal: AbortSignal): Promise<PodNetwork> {
		return network;
	}

	async attach(network: PodNetwork, vmAddress: string, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		if (!isIPv4(vmAddress)) {
			throw new AdaptorError({code: 'invalid-argument', what: 'The VM\'s address is not an IPv4 address', where: {address: vmAddress}});
		}

		const {netnsPath, vxlanId: vni, vxlanPort: port} = network;
		let tenancy = this.#tenancies.get(netnsPath);
		if (tenancy !== undefined && tenancy.vni !== vni) {
			throw new AdaptorError({code: 'failed-precondition', what: 'The network namespace has another tunnel by now', where: {netns: netnsPath, vni, present: tenancy.vni}});
		}

		if (tenancy === undefined) {
			// Reserved by an earlier run, which is known from its record.
			tenancy = {sandboxId: undefined, vni, remotes: new Set(), isAdopted: true};
			this.#tenancies.set(netnsPath, tenancy);
			this.#vnis.adopt(vni);
		}

		const former = tenancy.remotes.difference(new Set([vmAddress]));
		tenancy.remotes.add(vmAddress);
		await settled({
			untracked: this.#bypass.change({add: {address: vmAddress, vni}, remove: this.#unused(former, tenancy)}, signal),
			tunnel: this.#pointTunnel({netnsPath, vni, port, remote: vmAddress}, signal),
		});
		for (const address of former) {
			tenancy.remotes.delete(address);
		}

		await this.#iproute2.redirect(netnsPath, network.interface, signal);
	}

	async release(network: PodNetwork, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		const {netnsPath, vxlanId: vni} = network;
		const tenancy = this.#tenancies.get(netnsPath);
		// Otherwise a late repetition for a namespace that has a new tenant: the tunnel in there is not meant.
		const isTenant = tenancy === undefined || tenancy.vni === vni;
		await settled({
			untracked: this.#trackAgain(vni, isTenant ? tenancy : undefined, signal),
			...(isTenant ? {
				tunnel: unlessGone(this.#iproute2.removeTunnel(netnsPath, signal)),
				redirection: unlessGone(this.#iproute2.removeRedirection(netnsPath, network.interface, signal)),
			} : {}),
		});
		if (isTenant && this.#tenancies.get(netnsPath) === tenancy) {
			this.#tenancies.delete(netnsPath);
			this.#vnis.release(vni);
		}
	}

	async forget(vni: number, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		await this.#trackAgain(vni, undefined, signal);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#life.abort(new AdaptorError({code: 'cancelled', what: 'Shutting down'}));
		await this.#programs[Symbol.asyncDispose]();
	}

	#refuseSecondTenant(sandboxId: SandboxId, netnsPath: string): void {
		const tenancy = this.#tenancies.get(netnsPath);
		if (tenancy !== undefined && tenancy.sandboxId !== sandboxId) {
			throw new AdaptorError({
				code: 'already-exists',
				what: 'The network namespace belongs to another sandbox',
				where: {netns: netnsPath, vni: tenancy.vni, ...(tenancy.sandboxId === undefined ? {} : {sandbox: tenancy.sandboxId})},
				remedy: 'Stop that sandbox first.',
			});
		}
	}

	/** Takes over what an earlier run reserved here, else reserves a new one. @throws CommandError 'exists' when somebody else just did */
	async #reserveVni(sandboxId: SandboxId, netnsPath: string, links: readonly Link[], signal: AbortSignal): Promise<{vni: number; remote?: string; isAdopted: boolean}> {
		const {vxlanPort: port, vxlanMinId} = this.#options;
		const leftover = links.find(({name}) => name === tunnelInterface);
		if (leftover?.vxlan !== undefined && leftover.vxlan.vni >= vxlanMinId && isReusable(leftover.vxlan, port)) {
			const {vni, remote} = leftover.vxlan;
			this.#vnis.adopt(vni);
			this.#log.info({sandboxId, netns: netnsPath, vni}, 'VNI of an earlier run taken over');
			return {vni, isAdopted: true, ...(remote === undefined ? {} : {remote})};
		}

		if (leftover !== undefined) {
			this.#log.warn({sandboxId, netns: netnsPath, reason: leftover.vxlan === undefined ? 'it is no VXLAN device' : 'its port, VNI or mode is another'}, 'tunnel of an earlier run replaced');
			await this.#iproute2.removeTunnel(netnsPath, signal);
		}

		for (let attempt = this.#vnis.take(); ;) {
			try {
				await this.#iproute2.addTunnel({netnsPath, vni: attempt.vni, port}, signal);
				const remote = leftover?.vxlan?.remote;
				return {vni: attempt.vni, isAdopted: false, ...(remote === undefined ? {} : {remote})};
			} catch (error) {
				if (means(error, 'vni-in-use')) {
					attempt = attempt.another();
					continue;
				}

				this.#vnis.release(attempt.vni);
				if (!(error instanceof CommandError) || error.wasKilled) {
					await this.#undoReservation(netnsPath);
				}

				throw error;
			}
		}
	}

	/** Only what a reservation of ours looks like. */
	async #removeReservation(netnsPath: string, signal: AbortSignal): Promise<void> {
		const {vxlanPort, vxlanMinId} = this.#options;
		const {links} = await this.#iproute2.inspect(netnsPath, signal);
		const vxlan = links.find(({name}) => name === tunnelInterface)?.vxlan;
		if (vxlan !== undefined && vxlan.remote === undefined && vxlan.vni >= vxlanMinId && isReusable(vxlan, vxlanPort)) {
			await this.#iproute2.removeTunnel(netnsPath, signal);
		}
	}

	/** After an abort, a time-out or a kill nobody knows whether the device was made. */
	async #undoReservation(netnsPath: string): Promise<void> {
		using scope = new Scope().deadline(undoTimeoutMs, 'the reserved VNI to be released');
		try {
			await unlessGone(this.#iproute2.removeTunnel(netnsPath, scope.signal));
		} catch (error) {
			this.#log.warn({netns: netnsPath, err: error}, 'reserved VNI not released; it goes with the namespace');
		}
	}

	async #pointTunnel(tunnel: {readonly netnsPath: string; readonly vni: number; readonly port: number; readonly remote: string}, signal: AbortSignal): Promise<void> {
		try {
			await this.#iproute2.pointTunnel(tunnel, signal);
		} catch (error) {
			if (!means(error, 'no-device', 'other-vni')) {
				throw error;
			}

			// Somebody removed the device, or put another in its place. The VM knows this VNI only.
			if (means(error, 'other-vni')) {
				await this.#iproute2.removeTunnel(tunnel.netnsPath, signal);
			}

			await this.#iproute2.addTunnel(tunnel, signal);
		}
	}

	/** Takes the VM's address out of the NOTRACK set. What is not known to us, an earlier run's, is looked up. */
	async #trackAgain(vni: number, tenancy: Tenancy | undefined, signal: AbortSignal): Promise<void> {
		const known = tenancy?.remotes ?? new Set();
		const recorded = tenancy === undefined || tenancy.isAdopted ? await this.#bypass.addressesOf(vni, signal) : [];
		const remove = this.#unused(known.union(new Set(recorded)), tenancy);
		if (remove.length > 0) {
			await this.#bypass.change({remove}, signal);
		}
	}

	/** Those that no other tunnel leads to: libvirt gives an address to the next VM as soon as the last has ended. */
	#unused(addresses: ReadonlySet<string>, except: Tenancy | undefined): string[] {
		const others = this.#tenancies.values().filter(tenancy => tenancy !== except).toArray();
		return [...addresses].filter(address => !others.some(({remotes}) => remotes.has(address)));
	}
}

/** All of them, when all have settled; else the first error. So nothing is under way any more when it rejects. */
async function settled<T extends Record<string, unknown>>(promises: {readonly [Name in keyof T]: Promise<T[Name]>}): Promise<T> {
	const entries = Object.entries<Promise<unknown>>(promises);
	const results = await Promise.allSettled(entries.map(async ([, promise]) => promise));
	const failed = results.find(result => result.status === 'rejected');
	if (failed !== undefined) {
		throw failed.reason;
	}

	return Object.fromEntries(entries.map(([name], index) => {
		const result = results[index];
		return [name, result?.status === 'fulfilled' ? result.value : undefined];
	})) as T;
}

/** A filter of another program in place of ours is none of ours either. */
async function unlessGone(removal: Promise<void>): Promise<void> {
	try {
		await removal;
	} catch (error) {
		if (!means(error, 'no-netns', 'no-device', 'no-qdisc', 'other-qdisc')) {
			throw error;
		}
	}
}

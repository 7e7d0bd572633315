/**
 * Pod networks in the kernel. The namespace of each pod has a VXLAN device towards the VM. Traffic is redirected
 * between it and the interface of the pod, so that the VM has the address of the pod. Does not know libvirt; knows VMs
 * only by their address.
 *
 *   reserve          creates vxlan1 in the namespace: down, without remote, accepting nothing. It reserves the VNI in
 *                    the kernel, also while the daemon does not run
 *   attach           sets the remote, sets the device up for packets of that remote, and redirects traffic both ways
 *   release          removes everything and releases the VNI; so does the end of the namespace
 *   releaseByNetns   removes vxlan1 if its VNI is unknown
 *   releaseByVni     removes the host-side state if the namespace is unknown
 *
 * Each step can start from any intermediate state of an earlier run: a suitable device is reused, any other is
 * replaced.
 */
import {isIPv4} from 'node:net';
import {every} from '../core/concurrency/every.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {KeyedMutex} from '../core/concurrency/keyed-mutex.ts';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {Observer} from '../core/observer.ts';
import {present} from '../core/present.ts';
import type {NetnsIdentity, PodNetwork, PodNetworks, Presence, SandboxId} from '../sandbox/ports.ts';
import {CommandError, means} from './command-error.ts';
import {describeNetwork, type DescribedCommand} from './description.ts';
import type {NetworkEvent} from './events.ts';
import type {Link} from './inspection.ts';
import {Iproute2, type Tunnel} from './iproute2.ts';
import {checkNetns, mountRemedy, podNetnsAt, presenceOf} from './netns.ts';
import {NetworkProbe} from './probe.ts';
import {isReusable, planPodNetwork, tunnelInterface} from './plan.ts';
import {SpawnServer, type SpawnServerOptions} from './spawn-server.ts';
import {setRemote, Tenancies, type Tenancy} from './tenancies.ts';
import {TunnelGuard} from './tunnel-guard.ts';
import {Underlay, type UnderlaySource} from './underlay.ts';
import {VniAllocator, vniRange} from './vni.ts';

export interface PodNetworksOptions {
	readonly underlay: UnderlaySource;
	readonly vxlanPort: number;
	readonly vxlanMinId: number;
	/** IPv4 prefixes. */
	readonly podSubnetCidrs: readonly string[];
	readonly externalNetViaPodVm: boolean;
	readonly observer?: Observer<NetworkEvent>;
	readonly log: Logger;
	readonly spawnServer?: SpawnServerOptions;
	/** The namespace of the node, in which commands run; no pod may use it. */
	readonly ownNetns?: string;
	readonly random?: () => number;
}

export interface KernelPodNetworks extends PodNetworks, AsyncDisposable {
	/**
	 * Checks whether this node supports tunnels: programs, permissions, a free VXLAN port, and the nftables guard.
	 * @throws 'failed-precondition', 'permission-denied'
	 */
	check(signal: AbortSignal): Promise<void>;
	/**
	 * Drops VXLAN packets of the reserved VNIs that are not from the VM of the tunnel, until disposal. Restores flushed
	 * rules. Call it after the reservations of an earlier run are adopted, because this method closes tunnels that are
	 * neither known nor in use.
	 */
	guard(signal: AbortSignal): Promise<void>;
	/** The state of the network namespace of a pod, as tools print it. */
	describe(network: PodNetwork, signal: AbortSignal): Promise<readonly DescribedCommand[]>;
	/** A probe for checks that uses the same shells. */
	readonly probe: NetworkProbe;
}

/** Starts the shells for all commands. Call it early, while the process is small. */
export function createPodNetworks(options: PodNetworksOptions): KernelPodNetworks {
	return new Tunnels(options);
}

/** A sandbox and its namespace. */
interface Place {
	readonly sandboxId: SandboxId;
	readonly netnsPath: string;
	readonly netns: NetnsIdentity;
}

/** Time limit for undoing an aborted reservation. */
const undoTimeoutMs = 10_000;
/**
 * The kernel deletes a namespace and its tunnel in the background, so the tunnel may exist for this time.
 */
const vanishTimeoutMs = 5000;
/** Interval for restoring the nftables table. */
const guardIntervalMs = 60_000;
/**
 * Number of attempts if another program creates or removes the tunnel of a pod at the same time.
 */
const maxAttempts = 3;

class Tunnels implements KernelPodNetworks {
	readonly probe: NetworkProbe;
	readonly #options: PodNetworksOptions;
	readonly #ownNetns: string;
	readonly #log: Logger;
	readonly #programs: SpawnServer;
	readonly #iproute2: Iproute2;
	readonly #guard: TunnelGuard;
	readonly #underlay: Underlay;
	readonly #vnis: VniAllocator;
	readonly #tenancies = new Tenancies();
	/** Serialises reservations and releases per namespace. */
	readonly #reservations = new KeyedMutex();
	readonly #life = new AbortController();
	/** Settles with the first round. */
	readonly #guarded = Promise.withResolvers<undefined>();
	#guarding: Promise<void> | undefined;

	constructor(options: PodNetworksOptions) {
		const {
			underlay,
			vxlanPort,
			vxlanMinId,
			log,
			spawnServer,
			ownNetns = '/proc/self/ns/net',
			random = Math.random,
		} = options;
		this.#options = options;
		this.#ownNetns = ownNetns;
		this.#log = log;
		this.#programs = new SpawnServer(spawnServer);
		this.#iproute2 = new Iproute2(this.#programs);
		this.#guard = new TunnelGuard(
			this.#programs,
			this.#iproute2,
			{port: vxlanPort, ...vniRange(vxlanMinId)},
			this.#tenancies,
		);
		this.probe = new NetworkProbe(this.#programs, this.#iproute2, this.#guard, vxlanPort);
		this.#underlay = new Underlay(this.#iproute2, underlay, this.#life.signal);
		this.#vnis = new VniAllocator(vxlanMinId, random);
	}

	async check(signal: AbortSignal): Promise<void> {
		const {vxlanPort} = this.#options;
		const {isFree, sharing, freePort} = await this.probe.observeVxlanPort(signal);
		if (!isFree) {
			const users = sharing.join(', ');
			throw new AdaptorError({
				code: 'failed-precondition',
				what: `VXLAN_PORT ${vxlanPort} is in use on this node${users === '' ? '' : ` by ${users}, probably of the cluster network`}`,
				where: {port: vxlanPort},
				remedy: `Set VXLAN_PORT to a free UDP port, for example ${freePort}. Firewalls between this node and the KVM host must allow it.`,
			});
		}

		for (const name of sharing) {
			this.#log.warn({port: vxlanPort, reason: `the interface ${name} also uses it`}, 'VXLAN port is shared');
		}

		await this.#guard.check(signal);
	}

	async guard(signal: AbortSignal): Promise<void> {
		this.#guarding ??= this.#keepGuarding(this.#guarded);
		await abortable(this.#guarded.promise, signal);
	}

	/** Never throws. */
	async #keepGuarding(first: PromiseWithResolvers<undefined>): Promise<void> {
		const failures = new FailureLog();
		const {signal} = this.#life;
		first.promise.catch(() => undefined);
		for await (const _ of every(guardIntervalMs, signal)) {
			try {
				const dropped = await this.#guard.reconcile(signal);
				first.resolve(undefined);
				this.#options.observer?.notify({kind: 'tunnels-guarded', dropped});
				if (failures.recovered()) {
					this.#log.info({}, 'tunnels accept only packets of their VMs again');
				}
			} catch (error) {
				first.reject(error);
				if (!signal.aborted && failures.failed()) {
					this.#log.error(
						{err: error},
						'could not restrict the tunnels to packets of their VMs; retrying every minute',
					);
				}
			}
		}

		first.reject(signal.reason);
	}

	async reserve(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<PodNetwork> {
		signal.throwIfAborted();
		const netns = await checkNetns(netnsPath, this.#ownNetns);
		return this.#reservations.run(
			keyOf(netns),
			async () => this.#reserve({sandboxId, netnsPath, netns}, signal),
			signal,
		);
	}

	async #reserve(place: Place, signal: AbortSignal): Promise<PodNetwork> {
		const {sandboxId, netnsPath, netns} = place;
		for (let attempt = 1; ; attempt++) {
			const {inspection, worker} = await settled({
				inspection: this.#iproute2.inspect(netnsPath, signal),
				worker: this.#underlay.address(signal),
			});
			await this.#refuseSecondTenant(place, inspection.links);
			const {network, warnings} = planPodNetwork(inspection, {...this.#options, netnsPath, worker});
			try {
				const {vni, isAdopted} = await this.#reserveVni(place, inspection.links, signal);
				this.#moveIn({...place, vni, address: undefined, former: [], isAdopted, isUnseen: false});
				for (const reason of warnings) {
					this.#log.warn(
						{sandboxId, netns: netnsPath, reason},
						'the VM does not support a part of the pod network',
					);
				}

				return {...network, netns, vxlanId: vni, index: vni - this.#options.vxlanMinId};
			} catch (error) {
				if (!means(error, 'exists', 'no-device') || attempt >= maxAttempts) {
					throw error;
				}
			}
		}
	}

	/** Replaces an earlier tenancy of the same sandbox in the namespace. */
	#moveIn(tenancy: Tenancy): void {
		const former = this.#tenancies.in(tenancy.netns);
		this.#tenancies.add(tenancy);
		if (former !== undefined) {
			setRemote(former, undefined);
			tenancy.former = former.former;
			this.#drop(former);
		}
	}

	async releaseByNetns(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		const reserved = this.#tenancies.reservedBy(sandboxId, netnsPath);
		const netns = await podNetnsAt(netnsPath, this.#ownNetns);
		if (netns !== undefined) {
			await this.#reservations.run(
				keyOf(netns),
				async () => this.#releaseByNetns({sandboxId, netnsPath, netns}, signal),
				signal,
			);
		} else if ((await presenceOf({netnsPath, ...present({netns: reserved?.netns})}, this.#ownNetns)) !== 'gone') {
			this.#log.info(
				{sandboxId, netns: netnsPath},
				'network namespace is not visible; the kernel releases the reserved VNI when the namespace ends',
			);
		}

		if (reserved !== undefined) {
			this.#drop(reserved);
		}
	}

	async #releaseByNetns({sandboxId, netnsPath, netns}: Place, signal: AbortSignal): Promise<void> {
		const tenant = this.#tenancies.in(netns);
		if (tenant !== undefined && tenant.sandboxId !== sandboxId) {
			return;
		}

		try {
			await this.#removeReservation(netnsPath, signal);
		} catch (error) {
			if (!means(error, 'no-device') && !(await this.#isGone(error, {netnsPath, netns}))) {
				throw error;
			}
		}

		if (tenant !== undefined) {
			this.#drop(tenant);
		}
	}

	async presence(network: PodNetwork, _signal: AbortSignal): Promise<Presence> {
		return presenceOf(network, this.#ownNetns);
	}

	async identify(network: PodNetwork, signal: AbortSignal): Promise<PodNetwork> {
		signal.throwIfAborted();
		const netns = network.netns ?? (await podNetnsAt(network.netnsPath, this.#ownNetns));
		return netns === undefined ? network : {...network, netns};
	}

	async attach(network: PodNetwork, vmAddress: string, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		if (!isIPv4(vmAddress)) {
			throw new AdaptorError({
				code: 'invalid-argument',
				what: 'The address of the VM is not an IPv4 address',
				where: {address: vmAddress},
			});
		}

		const {netnsPath, vxlanId: vni, vxlanPort: port} = network;
		const netns = await this.#presentNetns(network);
		let tenancy = this.#tenancies.in(netns);
		if (tenancy !== undefined && tenancy.vni !== vni) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'The network namespace now has another tunnel',
				where: {netns: netnsPath, vni, present: tenancy.vni},
			});
		}

		if (tenancy === undefined) {
			// Reserved by an earlier run, according to its record.
			tenancy = {
				sandboxId: undefined,
				netnsPath,
				netns,
				vni,
				address: undefined,
				former: [],
				isAdopted: true,
				isUnseen: true,
			};
			this.#tenancies.add(tenancy);
			this.#vnis.adopt(vni);
		}

		await settled({
			guard: this.#guard.open(tenancy, vmAddress, signal),
			tunnel: this.#pointTunnel({netnsPath, vni, port, remote: vmAddress}, tenancy.sandboxId, signal),
		});
		await this.#iproute2.redirect(netnsPath, network.interface, signal);
	}

	adopt(sandboxId: SandboxId, {netnsPath, netns, vxlanId: vni}: PodNetwork): void {
		if (netns !== undefined && this.#tenancies.in(netns) === undefined) {
			this.#tenancies.add({
				sandboxId,
				netnsPath,
				netns,
				vni,
				address: undefined,
				former: [],
				isAdopted: true,
				isUnseen: true,
			});
			this.#vnis.adopt(vni);
		}
	}

	async detach(network: PodNetwork, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		const {netnsPath, vxlanId: vni} = network;
		if (
			(await presenceOf(network, this.#ownNetns)) !== 'present' ||
			(await this.#hasOtherTunnel(netnsPath, vni, signal))
		) {
			return;
		}

		await settled({
			tunnel: unlessAbsent(this.#iproute2.lowerTunnel(netnsPath, signal)),
			redirection: unlessAbsent(this.#iproute2.removeRedirection(netnsPath, network.interface, signal)),
		});
	}

	async release(network: PodNetwork, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		const tenancy = this.#tenancies.of(network);
		await settled({
			guard: this.#guard.close(network.vxlanId, tenancy, signal),
			devices: this.#removeDevices(network, tenancy, signal),
		});
		if (tenancy !== undefined) {
			this.#drop(tenancy);
		}
	}

	async releaseByVni(vni: number, signal: AbortSignal): Promise<void> {
		signal.throwIfAborted();
		await this.#guard.close(vni, undefined, signal);
	}

	async describe(network: PodNetwork, signal: AbortSignal): Promise<readonly DescribedCommand[]> {
		return describeNetwork(this.#programs, network, signal);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#life.abort(new AdaptorError({code: 'cancelled', what: 'Shutting down'}));
		await this.#guarding;
		await this.#programs[Symbol.asyncDispose]();
	}

	async #refuseSecondTenant({sandboxId, netnsPath, netns}: Place, links: readonly Link[]): Promise<void> {
		const tenant = this.#tenancies.in(netns);
		if (tenant === undefined || tenant.sandboxId === sandboxId) {
			return;
		}

		const tunnel = links.find(({name}) => name === tunnelInterface);
		const hasTunnel = tunnel?.vxlan?.vni === tenant.vni;
		if (!hasTunnel && (await presenceOf(tenant, this.#ownNetns)) !== 'present') {
			// The namespace of the tenant is gone, and the kernel has reused its inode.
			this.#tenancies.evict(tenant);
			return;
		}

		const tenantId = tenant.sandboxId ?? (hasTunnel ? tunnel.alias : undefined);
		throw new AdaptorError({
			code: 'already-exists',
			what: 'The network namespace belongs to another sandbox',
			where: {
				netns: netnsPath,
				vni: tenant.vni,
				...(tenant.netnsPath === netnsPath ? {} : {otherPath: tenant.netnsPath}),
				...present({sandbox: tenantId}),
			},
			remedy: 'Stop that sandbox first.',
		});
	}

	/**
	 * Takes over the reservation of an earlier run, or reserves a new VNI.
	 * @throws CommandError 'exists' if another program has just created a tunnel
	 */
	async #reserveVni(
		place: Place,
		links: readonly Link[],
		signal: AbortSignal,
	): Promise<{vni: number; isAdopted: boolean}> {
		const {sandboxId, netnsPath} = place;
		const {vxlanPort: port, vxlanMinId} = this.#options;
		const leftover = links.find(({name}) => name === tunnelInterface);
		if (leftover?.vxlan !== undefined && leftover.vxlan.vni >= vxlanMinId && isReusable(leftover.vxlan, port)) {
			const {vni} = leftover.vxlan;
			// The device may be up. Set it down: this daemon must verify the VM before it accepts packets.
			await this.#guard.close(vni, undefined, signal);
			this.#vnis.adopt(vni);
			this.#log.info({sandboxId, netns: netnsPath, vni}, 'reusing the VNI of an earlier run');
			return {vni, isAdopted: true};
		}

		if (leftover !== undefined) {
			this.#log.warn(
				{
					sandboxId,
					netns: netnsPath,
					reason: leftover.vxlan === undefined ? 'not a VXLAN device' : 'different port, VNI or mode',
				},
				'replaced the tunnel of an earlier run',
			);
			await this.#iproute2.removeTunnel(netnsPath, signal);
		}

		for (let attempt = this.#vnis.take(); ;) {
			try {
				await this.#iproute2.addTunnel({netnsPath, vni: attempt.vni, port}, signal);
				return {vni: attempt.vni, isAdopted: false};
			} catch (error) {
				if (means(error, 'vni-in-use')) {
					attempt = attempt.another();
					continue;
				}

				this.#vnis.release(attempt.vni);
				if (!(error instanceof CommandError) || error.wasKilled) {
					await this.#undoReservation(place);
				}

				throw error;
			}
		}
	}

	/** Only removes a device that looks like a reservation of this program. */
	async #removeReservation(netnsPath: string, signal: AbortSignal): Promise<void> {
		const {vxlanPort, vxlanMinId} = this.#options;
		const {links} = await this.#iproute2.inspect(netnsPath, signal);
		const vxlan = links.find(({name}) => name === tunnelInterface)?.vxlan;
		if (
			vxlan !== undefined &&
			vxlan.remote === undefined &&
			vxlan.vni >= vxlanMinId &&
			isReusable(vxlan, vxlanPort)
		) {
			await this.#iproute2.removeTunnel(netnsPath, signal);
		}
	}

	/** After an abort or timeout, it is unknown whether the device was created. */
	async #undoReservation(place: Place): Promise<void> {
		using scope = new Scope().deadline(undoTimeoutMs, 'the reserved VNI to be released');
		try {
			await this.#iproute2.removeTunnel(place.netnsPath, scope.signal);
		} catch (error) {
			if (!means(error, 'no-device') && !(await this.#isGone(error, place))) {
				this.#log.warn(
					{netns: place.netnsPath, err: error},
					'could not release the reserved VNI; the kernel releases it when the namespace ends',
				);
			}
		}
	}

	async #pointTunnel(tunnel: Required<Tunnel>, sandboxId: SandboxId | undefined, signal: AbortSignal): Promise<void> {
		try {
			await this.#iproute2.pointTunnel({...tunnel, sandboxId}, signal);
		} catch (error) {
			if (!means(error, 'no-device', 'other-vni')) {
				throw error;
			}

			// Another program removed or replaced the device. The VM only knows this VNI.
			if (means(error, 'other-vni')) {
				await this.#iproute2.removeTunnel(tunnel.netnsPath, signal);
			}

			await this.#iproute2.addTunnel(tunnel, signal);
		}
	}

	/**
	 * The namespace of a network to attach.
	 * @throws 'not-found' if it is proven to be gone, 'failed-precondition' if it is not visible
	 */
	async #presentNetns({netnsPath, netns}: PodNetwork): Promise<NetnsIdentity> {
		const presence = await presenceOf({netnsPath, ...present({netns})}, this.#ownNetns);
		const found = netns ?? (await podNetnsAt(netnsPath, this.#ownNetns));
		if (presence === 'present' && found !== undefined) {
			return found;
		}

		throw presence === 'gone'
			? new AdaptorError({
					code: 'not-found',
					what: 'The network namespace of the pod is gone',
					where: {netns: netnsPath},
				})
			: new AdaptorError({
					code: 'failed-precondition',
					what: 'The network namespace of the pod is not visible',
					where: {netns: netnsPath},
					remedy: mountRemedy,
				});
	}

	/** Whether a program failed because the namespace is proven to be gone. */
	async #isGone(error: unknown, place: Pick<PodNetwork, 'netnsPath' | 'netns'>): Promise<boolean> {
		return means(error, 'no-netns') && (await presenceOf(place, this.#ownNetns)) === 'gone';
	}

	/**
	 * Removes the devices in the namespace of the network. If the namespace is gone, so are the devices.
	 * @throws 'failed-precondition' if the tunnel exists in an invisible namespace
	 */
	async #removeDevices(network: PodNetwork, tenancy: Tenancy | undefined, signal: AbortSignal): Promise<void> {
		const {netnsPath, vxlanId: vni} = network;
		const presence = await presenceOf(network, this.#ownNetns);
		const netns =
			presence === 'present' ? (network.netns ?? (await podNetnsAt(netnsPath, this.#ownNetns))) : undefined;
		if (netns === undefined) {
			return presence === 'gone' ? undefined : this.#assertNoTunnel(network, signal);
		}

		const tenant = this.#tenancies.in(netns);
		if (tenant !== undefined && tenant !== tenancy) {
			// A late repetition of the call: another sandbox now uses the namespace.
			return;
		}

		try {
			// After a restart, the namespace may have another tunnel.
			if (tenancy?.isAdopted === false || !(await this.#hasOtherTunnel(netnsPath, vni, signal))) {
				await settled({
					tunnel: unlessAbsent(this.#iproute2.removeTunnel(netnsPath, signal)),
					redirection: unlessAbsent(this.#iproute2.removeRedirection(netnsPath, network.interface, signal)),
				});
			}
		} catch (error) {
			if (!means(error, 'no-netns')) {
				throw error;
			}

			if ((await presenceOf(network, this.#ownNetns)) !== 'gone') {
				await this.#assertNoTunnel(network, signal);
			}
		}
	}

	async #hasOtherTunnel(netnsPath: string, vni: number, signal: AbortSignal): Promise<boolean> {
		const {links} = await this.#iproute2.inspect(netnsPath, signal);
		const tunnel = links.find(({name}) => name === tunnelInterface);
		return tunnel !== undefined && tunnel.vxlan?.vni !== vni;
	}

	/**
	 * For an invisible namespace that is not proven to be gone: asks the kernel whether the VNI is in use, which means
	 * that the tunnel still exists.
	 * @throws 'failed-precondition' if it exists
	 */
	async #assertNoTunnel({netnsPath, vxlanId: vni, vxlanPort: port}: PodNetwork, signal: AbortSignal): Promise<void> {
		const left = new AdaptorError({
			code: 'failed-precondition',
			what: 'A tunnel is left in a network namespace that is not visible',
			where: {netns: netnsPath, vni, port},
			remedy: `${mountRemedy} The tunnel is deleted with the namespace.`,
		});
		using scope = new Scope(signal).deadline(vanishTimeoutMs, 'the tunnel to be deleted with its namespace');
		try {
			await retry(
				async () => {
					if (!(await this.#iproute2.isVniFree(vni, port, scope.signal))) {
						throw left;
					}
				},
				{
					backOff: [25, 500],
					onFailure: error => {
						if (error !== left && !means(error, 'exists')) {
							throw error;
						}
					},
				},
				scope.signal,
			);
		} catch (error) {
			signal.throwIfAborted();
			throw scope.signal.aborted ? left : error;
		}
	}

	#drop(tenancy: Tenancy): void {
		this.#tenancies.delete(tenancy);
		if (!this.#tenancies.hasVni(tenancy.vni)) {
			this.#vnis.release(tenancy.vni);
		}
	}
}

/** A namespace as a key. */
function keyOf({device, inode}: NetnsIdentity): string {
	return `${device}:${inode}`;
}

/** Waits until all have settled, then returns all values or throws the first error. */
async function settled<T extends Record<string, unknown>>(promises: {
	readonly [Name in keyof T]: Promise<T[Name]>;
}): Promise<T> {
	const entries = Object.entries<Promise<unknown>>(promises);
	const results = await Promise.allSettled(entries.map(async ([, promise]) => promise));
	const failed = results.find(result => result.status === 'rejected');
	if (failed !== undefined) {
		throw failed.reason;
	}

	return Object.fromEntries(
		entries.map(([name], index) => {
			const result = results[index];
			return [name, result?.status === 'fulfilled' ? result.value : undefined];
		}),
	) as T;
}

/**
 * Succeeds if there is nothing to remove. A filter of another program counts as nothing.
 */
async function unlessAbsent(removal: Promise<void>): Promise<void> {
	try {
		await removal;
	} catch (error) {
		if (!means(error, 'no-device', 'no-qdisc', 'other-qdisc')) {
			throw error;
		}
	}
}

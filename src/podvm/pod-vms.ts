/**
 * Pod VMs on a KVM host that libvirt manages.
 *
 * Start: define the domain, create the disks at the same time, start the domain. libvirt does not check disks when a
 * domain is defined, so the definition with our metadata is the journal: from the first side effect on, the host itself
 * shows what may need a clean-up. Delete: in reverse order, the definition last. This file does not cache the state of
 * VMs, which may be outdated: each start and each deletion begins with one list of all domains. That is one cheap call,
 * also right after a restart, and it includes the VMs of the other daemon during a rolling update.
 *
 * UUIDs are recycled with their slots, and libvirt finds domains by UUID alone. So a slot is held while work on it is
 * in progress: a late second deletion cannot hit the VM that gets the slot next.
 */
import {randomUUID} from 'node:crypto';
import {KeyedMutex} from '../core/concurrency/keyed-mutex.ts';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {Scope} from '../core/lifetime.ts';
import {isRefusal, libvirtCode, LibvirtConnectionError, LibvirtError} from '../libvirt/wire/errors.ts';
import {procedures, type Domain} from '../libvirt/wire/procedures.ts';
import type {LogFields, Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {isInstanceNameOf} from '../sandbox/instance-name.ts';
import type {PodVm, PodVmRecord, PodVms, PodVmSpec, SandboxId} from '../sandbox/ports.ts';
import type {PodVmEndedError} from '../sandbox/vm-ended.ts';
import {findAddresses} from './addresses.ts';
import {BaseImages} from './base-images.ts';
import {cidataIso} from './cidata.ts';
import {ConsoleTail, type ConsoleOutput} from './console-tail.ts';
import {makeDisks} from './disks.ts';
import {domainXml, interfaceXml, type DomainSpec} from './domain-xml.ts';
import {EndWatch} from './end-watch.ts';
import type {HostCapabilities} from './host-capabilities.ts';
import {chosenImage} from './image-choice.ts';
import {HostRequirements} from './host-requirements.ts';
import {change, mayHaveBeenMade} from '../libvirt/change.ts';
import {describeDomain, type PodVmDescription, type PodVmInspection} from './inspection.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {PodsDir, PodVmMetadata} from './metadata.ts';
import {causeOfFilterFailure, isAbsent, type NetworkProtection} from './network-protection.ts';
import {isStillThere, listDomains, ownership, readOwnDomains, type OwnDomain} from './own-domains.ts';
import {removeVm, settleAll} from './removal.ts';
import {formatUuid, parseUuid, VmSlots} from './vm-slots.ts';
import {explainFailure} from './start-failure.ts';
import {cidataVolumeName, rootVolumeName, type BaseVolume} from './volumes.ts';

export interface PodVmsOptions {
	readonly session: LibvirtCalls;
	/** Capabilities of the host of the session. */
	readonly capabilities: HostCapabilities;
	/** LIBVIRT_POOL */
	readonly pool: string;
	/** LIBVIRT_NET */
	readonly network: string;
	/** LIBVIRT_NET_FILTER */
	readonly netFilter: string;
	/** LIBVIRT_NET_ISOLATION */
	readonly netIsolation: 'auto' | 'on' | 'off';
	/** LIBVIRT_VOL_NAME: the image of pods that select none. */
	readonly volumeName: string;
	/** LIBVIRT_ALLOWED_IMAGES: images that pods may select; all if absent. */
	readonly allowedImages?: readonly string[];
	/** LIBVIRT_ROOT_DISK_SIZE */
	readonly rootDiskSizeGib: number;
	/** LIBVIRT_CPUSET */
	readonly cpuset?: string;
	readonly launchSecurity?: 's390-pv';
	/**
	 * LIBVIRT_SWIOTLB_MEMORY: memory that the kernel of a confidential VM reserves for its I/O. It is added to the
	 * memory of the pod.
	 */
	readonly swiotlbMib?: number;
	readonly cluster: string;
	readonly node: string;
	/**
	 * Stored in each VM, to distinguish it from VMs of another daemon of the same cluster and node. Without it, all are
	 * 'unmarked'.
	 */
	readonly podsDir?: PodsDir;
	readonly log: Logger;
	readonly clock?: () => Date;
}

export function createPodVms(options: PodVmsOptions): PodVms & PodVmInspection {
	return new LibvirtPodVms(options);
}

/**
 * Time limit of the clean-up after a failed start, independent of the signal of its caller. `list` shows what is left
 * afterwards.
 */
const rollBackTimeoutMs = 60_000;

/** Retries of a deletion after a lost connection. The caller has a longer time limit. */
const deleteAttempts = 3;

class LibvirtPodVms implements PodVms, PodVmInspection {
	readonly #options: PodVmsOptions;
	readonly #slots: VmSlots;
	/** The start and the deletions of one sandbox never overlap. */
	readonly #mutex = new KeyedMutex();
	readonly #host: HostRequirements;
	readonly #images: BaseImages;
	readonly #endWatch: EndWatch;
	/** Of VMs that this daemon started, or whose console was read. */
	readonly #consoles = new WeakMap<PodVm, ConsoleTail>();
	/** Of VMs that this daemon started. */
	readonly #protections = new WeakMap<PodVm, NetworkProtection>();
	/** Slots with work in progress, with the number of users. */
	#held: readonly number[] = [];

	constructor(options: PodVmsOptions) {
		this.#options = options;
		this.#slots = new VmSlots(options.cluster, options.node);
		this.#host = new HostRequirements(options);
		this.#images = new BaseImages(options);
		this.#endWatch = new EndWatch(options);
	}

	async start(spec: PodVmSpec, signal: AbortSignal): Promise<PodVm> {
		return this.#mutex.run(
			spec.sandboxId,
			async () => {
				const found: {base?: BaseVolume} = {};
				try {
					return await this.#start(spec, found, signal);
				} catch (error) {
					const {session, pool, network} = this.#options;
					throw await explainFailure(session, {pool, network, ...found}, error, signal);
				}
			},
			signal,
		);
	}

	addresses(vm: PodVm, signal: AbortSignal): AsyncGenerator<string, never> {
		const {session, network, log} = this.#options;
		const tail = this.#consoles.get(vm);
		return findAddresses(
			session,
			{domain: domainOf(vm), mac: vm.mac, network, ...present({console: tail})},
			log,
			signal,
		);
	}

	async bindAddress(vm: PodVm, address: string, signal: AbortSignal): Promise<void> {
		const protection = this.#protections.get(vm);
		if (protection === undefined || isAbsent(protection.filter)) {
			return;
		}

		const {session, network} = this.#options;
		try {
			await change(
				session,
				procedures.domainUpdateDeviceFlags,
				{
					dom: domainOf(vm),
					xml: interfaceXml({mac: vm.mac, network, protection}, address),
					flags: ofRunningDomain,
				},
				signal,
			);
		} catch (error) {
			throw causeOfFilterFailure(error, protection.filter.name);
		}
	}

	consoleTail(vm: PodVm): readonly string[] {
		return this.#consoles.get(vm)?.lines() ?? [];
	}

	async ended(vm: PodVm, signal: AbortSignal): Promise<PodVmEndedError> {
		return this.#endWatch.ended(domainOf(vm), signal);
	}

	async delete(sandboxId: SandboxId, signal: AbortSignal): Promise<void> {
		await this.#mutex.run(sandboxId, async () => this.#delete(sandboxId, signal), signal);
	}

	async list(signal: AbortSignal): Promise<readonly PodVmRecord[]> {
		const own = await this.#readOwn(await listDomains(this.#options.session, signal), signal);
		return own.map(({domain, slot, metadata}) => {
			const {sandboxId, pod, vni, createdAt} = metadata;
			return {
				...this.#vmAt(slot, domain.name, sandboxId),
				pod,
				vni,
				createdAt,
				running: domain.id !== -1,
				...ownership(this.#options.podsDir, metadata),
			};
		});
	}

	async describe(sandboxId: SandboxId, signal: AbortSignal): Promise<PodVmDescription | undefined> {
		const domains = await listDomains(this.#options.session, signal);
		const candidates = domains.filter(({name}) => isInstanceNameOf(name, sandboxId));
		const own = (await this.#readOwn(candidates, signal)).find(({metadata}) => metadata.sandboxId === sandboxId);
		return own === undefined ? undefined : describeDomain(this.#options.session, own, signal);
	}

	async readConsole(vm: PodVm, position: number, signal: AbortSignal): Promise<ConsoleOutput> {
		if (this.#options.launchSecurity !== undefined) {
			throw new AdaptorError({
				code: 'failed-precondition',
				what: 'The console of a confidential VM is not read',
				where: {instanceName: vm.name},
				remedy: 'Debug the image as an ordinary VM.',
			});
		}

		let tail = this.#consoles.get(vm);
		if (tail === undefined) {
			this.#consoles.set(vm, (tail = new ConsoleTail()));
		}

		return tail.after(position, this.#options.session, domainOf(vm), signal);
	}

	/** @param found gets the image, for the error of a later step */
	async #start(spec: PodVmSpec, found: {base?: BaseVolume}, signal: AbortSignal): Promise<PodVm> {
		const {
			session,
			pool: poolName,
			volumeName,
			rootDiskSizeGib,
			allowedImages,
			cluster,
			node,
			podsDir,
			log,
		} = this.#options;
		const {sandboxId, instanceName} = spec;
		checkInstanceName(spec);
		const image = chosenImage(spec.image, {
			configured: volumeName,
			...present({allowed: allowedImages}),
		});
		// The end-to-end tests of upstream search for these words.
		log.info({sandboxId, instanceName, image}, `Choosing ${image}`);
		const createdAt = this.#now();
		const iso = cidataIso(instanceName, spec.files, createdAt);
		const [host, protection, base, {pool}] = await Promise.all([
			this.#host.support(signal),
			this.#host.networkProtection(signal),
			this.#images.read(image, signal),
			session.call(procedures.storagePoolLookupByName, {name: poolName}, signal),
		]);
		found.base = base;
		const metadata: PodVmMetadata = {
			cluster,
			node,
			...present({podsDir}),
			sandboxId,
			pod: spec.pod,
			vni: spec.vni,
			createdAt,
			nonce: randomUUID(),
			pool: poolName,
			...present({poolDirectory: base.directory}),
			rootVolume: rootVolumeName(instanceName),
			cidataVolume: cidataVolumeName(instanceName),
			baseImage: image,
		};
		using held = new DisposableStack();
		await using undo = new AsyncDisposableStack();
		const {domain, slot} = await this.#define(spec, {host, protection}, metadata, held, undo, signal);
		// The daemon that defined the domain last owns it. If this daemon is not the owner, it must stop here,
		// otherwise two daemons would create the disks of one VM.
		if (!(await isStillThere(session, domain, metadata.nonce, signal))) {
			throw alreadyExists(sandboxId, instanceName);
		}

		await makeDisks(session, pool, metadata, {base, rootDiskSizeGib, iso}, signal);
		await this.#run(domain, protection, signal);
		signal.throwIfAborted();
		undo.move();
		const {vcpus, memoryMib} = spec;
		const swiotlbMib = this.#swiotlbMib;
		log.info(
			{
				sandboxId,
				instanceName,
				image,
				mac: this.#slots.at(slot).mac,
				vcpus,
				memoryMib: memoryMib + swiotlbMib,
				...(swiotlbMib === 0 ? {} : {swiotlbMib}),
				domainType: host.domainType,
				...protectionFields(protection),
			},
			'domain started',
		);
		const vm = this.#vmAt(slot, instanceName, sandboxId);
		this.#protections.set(vm, protection);
		// The console of a confidential guest is not read; debug the image as an ordinary guest.
		if (this.#options.launchSecurity === undefined) {
			this.#consoles.set(vm, new ConsoleTail());
		}

		return vm;
	}

	/** Takes the lowest slot that libvirt accepts, and adds it to `held`. Later clean-up steps are added to `undo`. */
	async #define(
		spec: PodVmSpec,
		{host, protection}: Pick<DomainSpec, 'host' | 'protection'>,
		metadata: PodVmMetadata,
		held: DisposableStack,
		undo: AsyncDisposableStack,
		signal: AbortSignal,
	): Promise<{domain: Domain; slot: number}> {
		const {session, network, cpuset, launchSecurity} = this.#options;
		const {sandboxId, instanceName} = spec;
		let refused: {readonly slot: number; readonly error: LibvirtError} | undefined;
		for (;;) {
			const domains = await listDomains(session, signal);
			// Defining an existing name with its own UUID would replace the definition of a VM that may be running.
			if (domains.some(({name}) => name === instanceName)) {
				throw alreadyExists(sandboxId, instanceName);
			}

			const taken = new Set(
				domains.map(({uuid}) => this.#slots.numberOf(uuid)).filter(number => number !== undefined),
			);
			if (refused !== undefined && !taken.has(refused.slot)) {
				throw refused.error;
			}

			const slot = this.#slots.lowestFree(taken.union(new Set(this.#held)));
			const {uuid, mac} = this.#slots.at(slot);
			const xml = domainXml({
				name: instanceName,
				uuid: formatUuid(uuid),
				mac,
				vcpus: spec.vcpus,
				memoryMib: spec.memoryMib + this.#swiotlbMib,
				network,
				host,
				protection,
				metadata,
				...(cpuset === undefined || cpuset === '' ? {} : {cpuset}),
				...present({launchSecurity}),
			});
			signal.throwIfAborted();
			held.use(this.#hold(slot));
			try {
				const {dom} = await change(session, procedures.domainDefineXmlFlags, {xml, flags: 0}, signal);
				undo.defer(async () => this.#rollBack(metadata));
				return {domain: dom, slot};
			} catch (error) {
				this.#host.forget();
				if (!(error instanceof LibvirtError)) {
					if (mayHaveBeenMade(error, signal)) {
						undo.defer(async () => this.#rollBack(metadata));
					}

					throw error;
				}

				// Another daemon, probably the one that this one replaces, may have taken the slot or the name after
				// the list: list again.
				if (error.libvirtCode !== libvirtCode.operationFailed) {
					throw error;
				}

				refused = {slot, error};
			}
		}
	}

	async #run(dom: Domain, {filter}: NetworkProtection, signal: AbortSignal): Promise<void> {
		try {
			await change(this.#options.session, procedures.domainCreateWithFlags, {dom, flags: 0}, signal);
		} catch (error) {
			// The emulator may have been updated after the capabilities were read.
			this.#host.forget();
			throw isAbsent(filter) ? error : causeOfFilterFailure(error, filter.name);
		}
	}

	/** Never throws: the caller gets the failure that led here. */
	async #rollBack({sandboxId, nonce}: PodVmMetadata): Promise<void> {
		const {log} = this.#options;
		using scope = new Scope().deadline(rollBackTimeoutMs, 'the clean-up after a failed start');
		let failure: unknown;
		try {
			await retry(
				async () => this.#delete(sandboxId, scope.signal, nonce),
				{
					backOff: [100, 5000],
					onFailure(error, {retryInMs}) {
						failure = error;
						log.debug({sandboxId, retryInMs, err: error}, 'retrying the clean-up after a failed start');
					},
				},
				scope.signal,
			);
		} catch (error) {
			log.warn(
				{sandboxId, err: failure ?? error},
				'could not clean up after a failed start; the VM stays in the list of VMs until a later attempt deletes it',
			);
		}
	}

	/**
	 * Starts again from the list if the connection is lost: the list shows what was done.
	 * @param nonce identifies the start whose VM is to be deleted; if absent, the VM of any start is deleted
	 */
	async #delete(sandboxId: SandboxId, signal: AbortSignal, nonce?: string): Promise<void> {
		const {log} = this.#options;
		await retry(
			async () => this.#deleteListed(sandboxId, signal, nonce),
			{
				// The session itself waits for a new connection.
				backOff: [0, 0],
				onFailure(error, {attempt}) {
					if (!(error instanceof LibvirtConnectionError) || isRefusal(error) || attempt === deleteAttempts) {
						throw error;
					}

					log.debug({sandboxId, attempt, err: error}, 'searching the pod VM again to delete it');
				},
			},
			signal,
		);
	}

	async #deleteListed(sandboxId: SandboxId, signal: AbortSignal, nonce: string | undefined): Promise<void> {
		const {session, log} = this.#options;
		const domains = await listDomains(session, signal);
		// Found by name, without reading the XML of other domains.
		const candidates = domains.filter(({name}) => isInstanceNameOf(name, sandboxId));
		const found = (await this.#readOwn(candidates, signal)).filter(
			({metadata}) => metadata.sandboxId === sandboxId && (nonce === undefined || metadata.nonce === nonce),
		);
		await settleAll(
			found.map(async own => {
				using _held = this.#hold(own.slot);
				await removeVm(session, own, signal);
				log.info({sandboxId, instanceName: own.domain.name}, 'pod VM deleted');
			}),
		);
	}

	#hold(slot: number): Disposable {
		this.#held = [...this.#held, slot];
		return {
			[Symbol.dispose]: () => {
				this.#held = this.#held.toSpliced(this.#held.indexOf(slot), 1);
			},
		};
	}

	async #readOwn(domains: readonly Domain[], signal: AbortSignal): Promise<readonly OwnDomain[]> {
		return readOwnDomains(this.#options.session, this.#slots, this.#options, domains, this.#options.log, signal);
	}

	get #swiotlbMib(): number {
		const {launchSecurity, swiotlbMib = 0} = this.#options;
		return launchSecurity === undefined ? 0 : swiotlbMib;
	}

	#vmAt(slot: number, name: string, sandboxId: SandboxId): PodVm {
		const {uuid, mac} = this.#slots.at(slot);
		return {sandboxId, name, uuid: formatUuid(uuid), mac};
	}

	#now(): Date {
		return this.#options.clock?.() ?? new Date();
	}
}

/** VIR_DOMAIN_AFFECT_LIVE: the stored definition is never started again. */
const ofRunningDomain = 1;

/** The protections of the network of the VM, and why one is missing. */
function protectionFields({
	filter,
	isolation,
}: NetworkProtection): Pick<LogFields, 'netFilter' | 'isolatedPort' | 'reason'> {
	const reason = [filter, isolation]
		.filter(isAbsent)
		.map(absence => absence.reason)
		.join('; ');
	return {
		netFilter: isAbsent(filter) ? 'none' : filter.name,
		isolatedPort: isolation === 'on',
		...(reason === '' ? {} : {reason}),
	};
}

function domainOf({name, uuid}: PodVm): Domain {
	return {name, uuid: parseUuid(uuid), id: -1};
}

function checkInstanceName({sandboxId, instanceName}: PodVmSpec): void {
	if (!isInstanceNameOf(instanceName, sandboxId)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Could not start the pod VM: its name is not podvm-<pod>-<first 8 characters of the sandbox id>',
			where: {instanceName, sandboxId},
		});
	}
}

function alreadyExists(sandboxId: SandboxId, instanceName: string): AdaptorError {
	return new AdaptorError({
		code: 'already-exists',
		what: 'Could not start the pod VM: the KVM host already has a domain with this name',
		where: {instanceName, sandboxId},
		remedy: 'Stop the sandbox first. If the domain is not of this cluster and node, remove it on the KVM host.',
	});
}

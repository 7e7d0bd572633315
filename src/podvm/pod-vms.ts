/**
 * Pod VMs on a KVM host that libvirt manages.
 *
 * Start: define, then make the disks side by side, then start. libvirt does not look at disks when a domain is defined,
 * so the definition with our metadata is the journal: from the first side effect on, the host itself says what may have
 * to be cleaned up. Delete: the other way round, the definition last. Nothing about VMs is remembered here that the
 * host could contradict: each start and delete begins with one list of all domains, which is one cheap call, right
 * after a restart too, and sees the other daemon's VMs during a rolling update.
 *
 * UUIDs are recycled with their slots and libvirt finds domains by UUID alone. So a slot is held here while it is
 * worked on: a second deletion that comes late cannot hit the VM that got the slot next.
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
import {ConsoleTail} from './console-tail.ts';
import {makeDisks} from './disks.ts';
import {domainXml, interfaceXml, type DomainSpec} from './domain-xml.ts';
import {EndWatch} from './end-watch.ts';
import type {HostCapabilities} from './host-capabilities.ts';
import {chosenImage} from './image-choice.ts';
import {HostRequirements} from './host-requirements.ts';
import {change, mayHaveBeenMade} from '../libvirt/change.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {PodsDir, PodVmMetadata} from './metadata.ts';
import {causeOfFilterFailure, isAbsent, type NetworkProtection} from './network-protection.ts';
import {isStillThere, listDomains, ownership, readOwnDomains, type OwnDomain} from './own-domains.ts';
import {removeVm, settleAll} from './removal.ts';
import {formatUuid, parseUuid, VmSlots} from './vm-slots.ts';
import {causeOfFailure, cidataVolumeName, rootVolumeName} from './volumes.ts';

export interface PodVmsOptions {
	readonly session: LibvirtCalls;
	/** Of the session's host. */
	readonly capabilities: HostCapabilities;
	/** LIBVIRT_POOL */
	readonly pool: string;
	/** LIBVIRT_NET */
	readonly network: string;
	/** LIBVIRT_NET_FILTER */
	readonly netFilter: string;
	/** LIBVIRT_NET_ISOLATION */
	readonly netIsolation: 'auto' | 'on' | 'off';
	/** LIBVIRT_VOL_NAME: the image of pods that choose none. */
	readonly volumeName: string;
	/** LIBVIRT_ALLOWED_IMAGES: which others they may choose; all when absent. */
	readonly allowedImages?: readonly string[];
	/** LIBVIRT_ROOT_DISK_SIZE */
	readonly rootDiskSizeGib: number;
	/** LIBVIRT_CPUSET */
	readonly cpuset?: string;
	readonly launchSecurity?: 's390-pv';
	/**
	 * LIBVIRT_SWIOTLB_MEMORY: what a confidential VM's kernel keeps for its I/O; such a VM gets as much on top of what
	 * its pod asked for.
	 */
	readonly swiotlbMib?: number;
	readonly cluster: string;
	readonly node: string;
	/**
	 * Written to each VM, to tell this daemon's from another's of the same cluster and node. Without it all are
	 * 'unmarked'.
	 */
	readonly podsDir?: PodsDir;
	readonly log: Logger;
	readonly clock?: () => Date;
}

export function createPodVms(options: PodVmsOptions): PodVms {
	return new LibvirtPodVms(options);
}

/**
 * A start that failed cleans up in this time, whatever its caller's signal says; what is left then is found by `list`.
 */
const unwindTimeoutMs = 60_000;

/** Of one deletion, when each is cut off; whoever asked for it has a longer patience. */
const deleteAttempts = 3;

class LibvirtPodVms implements PodVms {
	readonly #options: PodVmsOptions;
	readonly #slots: VmSlots;
	/** A start and the deletions of one sandbox never overlap. */
	readonly #mutex = new KeyedMutex();
	readonly #host: HostRequirements;
	readonly #images: BaseImages;
	readonly #endWatch: EndWatch;
	/** Of VMs that were started here. */
	readonly #consoles = new WeakMap<PodVm, ConsoleTail>();
	/** Of VMs that this daemon has started. */
	readonly #protections = new WeakMap<PodVm, NetworkProtection>();
	/** Slots that are being worked on, once for each who does. */
	#held: readonly number[] = [];

	constructor(options: PodVmsOptions) {
		this.#options = options;
		this.#slots = new VmSlots(options.cluster, options.node);
		this.#host = new HostRequirements(options);
		this.#images = new BaseImages(options);
		this.#endWatch = new EndWatch(options);
	}

	async start(spec: PodVmSpec, signal: AbortSignal): Promise<PodVm> {
		return this.#mutex.run(spec.sandboxId, async () => this.#start(spec, signal), signal);
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

	async #start(spec: PodVmSpec, signal: AbortSignal): Promise<PodVm> {
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
		// Upstream's end-to-end tests look for these words.
		log.info({sandboxId, instanceName, image}, `Choosing ${image}`);
		const createdAt = this.#now();
		const iso = cidataIso(instanceName, spec.files, createdAt);
		const [host, protection, base, {pool}] = await Promise.all([
			this.#host.support(signal),
			this.#host.networkProtection(signal),
			this.#images.read(image, signal),
			session.call(procedures.storagePoolLookupByName, {name: poolName}, signal),
		]);
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
		// Whoever defines last owns it: the disks would be made twice otherwise, one daemon's under the other's VM.
		if (!(await isStillThere(session, domain, metadata.nonce, signal))) {
			throw alreadyExists(sandboxId, instanceName);
		}

		try {
			await makeDisks(session, pool, metadata, {base, rootDiskSizeGib, iso}, signal);
			await this.#run(domain, protection, signal);
		} catch (error) {
			throw await causeOfFailure(session, poolName, base, error, signal);
		}

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
		// What a confidential guest prints is nobody's business on this side; it has to be debugged as an ordinary one.
		if (this.#options.launchSecurity === undefined) {
			this.#consoles.set(vm, new ConsoleTail());
		}

		return vm;
	}

	/**
	 * Takes the lowest slot that libvirt lets us have, and adds it to `held`. What is to be undone from here on is
	 * added to `undo`.
	 */
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
			// Defining a name again with its own UUID would replace the definition of a VM that may be running.
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
				undo.defer(async () => this.#unwind(metadata));
				return {domain: dom, slot};
			} catch (error) {
				this.#host.forget();
				if (!(error instanceof LibvirtError)) {
					if (mayHaveBeenMade(error, signal)) {
						undo.defer(async () => this.#unwind(metadata));
					}

					throw error;
				}

				// Perhaps somebody else, most likely the daemon that we replace, took the slot or the name since we
				// looked: look again.
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
			// The emulator may have been updated since the capabilities were read.
			this.#host.forget();
			throw isAbsent(filter) ? error : causeOfFilterFailure(error, filter.name);
		}
	}

	/** Never throws: the failure that led here is what the caller shall see. */
	async #unwind({sandboxId, nonce}: PodVmMetadata): Promise<void> {
		const {log} = this.#options;
		using scope = new Scope().deadline(unwindTimeoutMs, 'the clean-up after a failed start');
		let failure: unknown;
		try {
			await retry(
				async () => this.#delete(sandboxId, scope.signal, nonce),
				{
					backOff: [100, 5000],
					onFailure(error, {retryInMs}) {
						failure = error;
						log.debug(
							{sandboxId, retryInMs, err: error},
							'clean-up after a failed start will be tried again',
						);
					},
				},
				scope.signal,
			);
		} catch (error) {
			log.warn(
				{sandboxId, err: failure ?? error},
				'could not clean up after a failed start: the VM stays listed until it is deleted',
			);
		}
	}

	/**
	 * From the list again when the connection is lost in the middle: what was done then is looked up rather than
	 * supposed.
	 * @param nonce of the one start whose VM is meant; that of whichever start if absent
	 */
	async #delete(sandboxId: SandboxId, signal: AbortSignal, nonce?: string): Promise<void> {
		const {log} = this.#options;
		await retry(
			async () => this.#deleteListed(sandboxId, signal, nonce),
			{
				// The session waits for a new connection by itself.
				backOff: [0, 0],
				onFailure(error, {attempt}) {
					if (!(error instanceof LibvirtConnectionError) || isRefusal(error) || attempt === deleteAttempts) {
						throw error;
					}

					log.debug({sandboxId, attempt, err: error}, 'pod VM will be looked for again to delete it');
				},
			},
			signal,
		);
	}

	async #deleteListed(sandboxId: SandboxId, signal: AbortSignal, nonce: string | undefined): Promise<void> {
		const {session, log} = this.#options;
		const domains = await listDomains(session, signal);
		// Found by their names, without reading the XML of many.
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

/** VIR_DOMAIN_AFFECT_LIVE: its definition is never started again. */
const ofRunningDomain = 1;

/** What keeps the VM from impersonating its neighbours, and why something does not. */
function protectionFields({filter, isolation}: NetworkProtection): LogFields {
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
			what: 'Could not start the pod VM: its name is not podvm-<pod>-<first 8 of the sandbox id>',
			where: {instanceName, sandboxId},
		});
	}
}

function alreadyExists(sandboxId: SandboxId, instanceName: string): AdaptorError {
	return new AdaptorError({
		code: 'already-exists',
		what: 'Could not start the pod VM: the libvirt host has a domain of this name',
		where: {instanceName, sandboxId},
		remedy: 'Stop the sandbox first. If the domain is not of this cluster and node, remove it on the KVM host.',
	});
}

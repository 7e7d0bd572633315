/**
 * `PodVms` without a hypervisor, for tests of the domain: VMs are entries of a host in memory. Passes
 * test/contract/pod-vms.ts like the real one.
 */
import {AdaptorError, toError} from '../../src/core/errors.ts';
import {abortable, Scope} from '../../src/core/lifetime.ts';
import {PodVmEndedError} from '../../src/sandbox/vm-ended.ts';
import type {PodVm, PodVmRecord, PodVms, PodVmSpec, SandboxId} from '../../src/sandbox/ports.ts';

interface Entry {
	readonly node: string;
	/** Of the daemon that has started it. */
	readonly podsDir: string | undefined;
	readonly slot: number;
	readonly record: Omit<PodVmRecord, 'ownership' | 'podsDir'>;
	readonly addresses: readonly string[];
	/** Aborts when the VM ends. */
	readonly life: Scope;
	readonly spec: PodVmSpec;
}

/** What the daemons of several nodes, or of one node before and after a restart, share. */
export class InMemoryKvmHost {
	readonly images = new Set(['podvm-base.qcow2']);
	readonly vms = new Map<string, Entry>();
	/** Names of VMs of which a disk cannot be removed. */
	readonly stuck = new Set<string>();
	/** When set, nothing that is asked of the host is answered. */
	isAway = false;

	/** Ends a VM as if somebody had stopped it on the host; its definition stays. */
	kill(name: string): void {
		const entry = this.vms.get(name);
		if (entry !== undefined) {
			this.vms.set(name, {...entry, record: {...entry.record, running: false}});
			entry.life.abort(stopped(name));
		}
	}
}

export class InMemoryPodVms implements PodVms {
	readonly host: InMemoryKvmHost;
	/** When set, `start` fails with it. */
	startError: Error | undefined;
	/** When set, `start` waits for it before the VM exists; it may still be aborted then. */
	startGate: Promise<void> | undefined;
	/** When set, `delete` fails with it. */
	deleteError: Error | undefined;
	/** Where VMs that are started from now on may be reached. None: `addresses` waits. */
	addressesOfVms: readonly string[] = ['192.168.122.10'];
	/** What guests say on their consoles. */
	readonly consoles = new Map<string, readonly string[]>();
	readonly #node: string;
	readonly #podsDir: string | undefined;

	/** @param podsDir null for a daemon that does not say which it is, as earlier versions */
	constructor({
		host = new InMemoryKvmHost(),
		node = 'node',
		podsDir = '/run/peerpod/pods',
	}: {readonly host?: InMemoryKvmHost; readonly node?: string; readonly podsDir?: string | null} = {}) {
		this.host = host;
		this.#node = node;
		this.#podsDir = podsDir ?? undefined;
	}

	/** What a VM of this host was started with. */
	specOf(name: string): PodVmSpec | undefined {
		return this.host.vms.get(name)?.spec;
	}

	async start(spec: PodVmSpec, signal: AbortSignal): Promise<PodVm> {
		const {sandboxId, instanceName: name, image = 'podvm-base.qcow2'} = spec;
		throwIfAborted(signal);
		if (image === '' || image.includes('/') || /^podvm-.*-(?:root\.qcow2|cidata\.iso)$/.test(image)) {
			throw new AdaptorError({code: 'invalid-argument', what: 'Could not choose the image', where: {image}});
		}

		await abortable(this.startGate ?? Promise.resolve(), signal);
		throwIfAborted(signal);
		if (this.startError !== undefined) {
			throw this.startError;
		}

		if (!this.host.images.has(image)) {
			throw new AdaptorError({code: 'not-found', what: `Can't retrieve volume ${image}`, where: {volume: image}});
		}

		if (this.host.vms.has(name)) {
			throw new AdaptorError({
				code: 'already-exists',
				what: 'Could not start the pod VM: there is one of this name',
				where: {instanceName: name},
			});
		}

		const taken = new Set(
			[...this.host.vms.values()].filter(({node}) => node === this.#node).map(({slot}) => slot),
		);
		let slot = 0;
		while (taken.has(slot)) {
			slot++;
		}

		const last = slot.toString(16).padStart(2, '0');
		const node = Buffer.from(this.#node.padEnd(4)).toString('hex', 0, 4);
		const vm: PodVm = {
			sandboxId,
			name,
			uuid: `${node}-0000-8000-8000-0000000000${last}`,
			mac: `52:${node.replace(/(..)(..)(..)(..)/, '$1:$2:$3:$4')}:${last}`,
		};
		this.host.vms.set(name, {
			node: this.#node,
			podsDir: this.#podsDir,
			slot,
			addresses: this.addressesOfVms,
			life: new Scope(),
			spec,
			record: {...vm, pod: spec.pod, vni: spec.vni, createdAt: new Date(), running: true},
		});
		return vm;
	}

	addresses(vm: PodVm, signal: AbortSignal): AsyncGenerator<string, never> {
		const stop = new Scope();
		const found = this.#search(vm.name, signal, stop.signal);
		const end = async (): Promise<IteratorReturnResult<never>> => {
			stop.abort(new Error('Nobody asks any more'));
			return found.return(undefined as never) as Promise<IteratorReturnResult<never>>;
		};

		return {
			next: async () =>
				found
					.next()
					.catch(async (error: unknown) => (stop.signal.aborted ? end() : Promise.reject(toError(error)))),
			return: end,
			throw: async error => end().then(async () => Promise.reject(toError(error))),
			[Symbol.asyncIterator]() {
				return this;
			},
			[Symbol.asyncDispose]: async () => {
				await end();
			},
		};
	}

	/** By VM's name. */
	readonly boundAddresses = new Map<string, string>();

	async bindAddress({name}: PodVm, address: string, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		this.boundAddresses.set(name, address);
	}

	consoleTail({name}: PodVm): readonly string[] {
		return this.consoles.get(name) ?? [];
	}

	async ended({name, uuid}: PodVm, signal: AbortSignal): Promise<PodVmEndedError> {
		const entry = this.host.vms.get(name);
		if (entry?.record.uuid !== uuid || entry.life.signal.aborted) {
			throwIfAborted(signal);
			return entry?.record.uuid === uuid ? stopped(name) : removed(name);
		}

		using scope = new Scope(entry.life.signal, signal);
		await abortable(Promise.withResolvers<never>().promise, scope.signal).catch(() => undefined);
		throwIfAborted(signal);
		return stopped(name);
	}

	async delete(sandboxId: SandboxId, signal: AbortSignal): Promise<void> {
		throwIfAborted(signal);
		if (this.deleteError !== undefined) {
			throw this.deleteError;
		}

		for (const [name, {node, record, life}] of this.host.vms) {
			if (node === this.#node && record.sandboxId === sandboxId) {
				if (this.host.stuck.has(name)) {
					this.host.kill(name);
					throw new AdaptorError({
						code: 'failed-precondition',
						what: `Could not delete all of the pod VM: left are ${name}-cidata.iso and its definition`,
						where: {instanceName: name},
						remedy: 'Remove them by hand.',
					});
				}

				this.host.vms.delete(name);
				// Whoever waits sees first that it is stopped.
				life.abort(stopped(name));
			}
		}
	}

	async list(signal: AbortSignal): Promise<readonly PodVmRecord[]> {
		throwIfAborted(signal);
		if (this.host.isAway) {
			throw new AdaptorError({code: 'unavailable', what: 'The host is away'});
		}

		return [...this.host.vms.values()]
			.filter(({node}) => node === this.#node)
			.map(({record, podsDir}) => ({...record, ...this.#ownership(podsDir)}));
	}

	#ownership(podsDir: string | undefined): Pick<PodVmRecord, 'ownership' | 'podsDir'> {
		if (this.#podsDir === undefined || podsDir === undefined) {
			return {ownership: 'unmarked'};
		}

		return podsDir === this.#podsDir ? {ownership: 'ours'} : {ownership: 'foreign', podsDir};
	}

	async *#search(name: string, ...ends: readonly AbortSignal[]): AsyncGenerator<string, never> {
		const entry = this.host.vms.get(name);
		if (entry === undefined) {
			throw removed(name);
		}

		using scope = new Scope(entry.life.signal, ...ends);
		for (const address of entry.addresses) {
			throwIfAborted(scope.signal);
			yield address;
		}

		return await abortable(Promise.withResolvers<never>().promise, scope.signal);
	}
}

function stopped(instanceName: string): PodVmEndedError {
	return new PodVmEndedError(instanceName, {how: 'somebody stopped it', remedy: 'Ask who did.'});
}

function removed(instanceName: string): PodVmEndedError {
	return new PodVmEndedError(instanceName, {
		how: 'its domain does not exist any more',
		remedy: 'The pod has to be made anew.',
		isRemoved: true,
	});
}

function throwIfAborted(signal: AbortSignal): void {
	if (signal.aborted) {
		throw toError(signal.reason);
	}
}

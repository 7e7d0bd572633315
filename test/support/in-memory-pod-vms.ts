/**
 * `PodVms` without a hypervisor, for tests of the domain. VMs are entries of an in-memory host. Passes
 * test/contract/pod-vms.ts, like the real implementation.
 */
import {AdaptorError, toError} from '../../src/core/errors.ts';
import {abortable, Scope} from '../../src/core/lifetime.ts';
import {PodVmEndedError} from '../../src/sandbox/vm-ended.ts';
import type {PodVm, PodVmRecord, PodVms, PodVmSpec, SandboxId} from '../../src/sandbox/ports.ts';

interface Entry {
	readonly node: string;
	/** PODS_DIR of the daemon that started it. */
	readonly podsDir: string | undefined;
	readonly slot: number;
	readonly record: Omit<PodVmRecord, 'ownership' | 'podsDir'>;
	readonly addresses: readonly string[];
	/** Aborts when the VM ends. */
	readonly life: Scope;
	readonly spec: PodVmSpec;
}

/** A host that several daemons share: those of several nodes, or of one node before and after a restart. */
export class InMemoryKvmHost {
	readonly images = new Set(['podvm-base.qcow2']);
	readonly vms = new Map<string, Entry>();
	/** Names of VMs with a disk that cannot be removed. */
	readonly stuck = new Set<string>();
	/** If true, all queries of the host fail. */
	isAway = false;

	/** Ends a VM, like an administrator who stops it on the host. Its definition stays. */
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
	/** If set, `start` fails with it. */
	startError: Error | undefined;
	/** If set, `start` waits for it before it creates the VM; the wait can be aborted. */
	startGate: Promise<void> | undefined;
	/** If set, `delete` fails with it. */
	deleteError: Error | undefined;
	/** The candidate addresses of VMs that are started from now on. If empty, `addresses` waits. */
	addressesOfVms: readonly string[] = ['192.168.122.10'];
	/** By name of the VM: the console tail. */
	readonly consoles = new Map<string, readonly string[]>();
	readonly #node: string;
	readonly #podsDir: string | undefined;

	/** @param podsDir null for a daemon that does not mark its VMs, like earlier versions */
	constructor({
		host = new InMemoryKvmHost(),
		node = 'node',
		podsDir = '/run/peerpod/pods',
	}: {readonly host?: InMemoryKvmHost; readonly node?: string; readonly podsDir?: string | null} = {}) {
		this.host = host;
		this.#node = node;
		this.#podsDir = podsDir ?? undefined;
	}

	/** The spec with which a VM of this host was started. */
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
				what: 'Could not start the pod VM: one with this name exists',
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
			stop.abort(new Error('The addresses are no longer needed'));
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

	/** By name of the VM. */
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
				// Waiting callers get this reason: that it was stopped.
				life.abort(stopped(name));
			}
		}
	}

	async list(signal: AbortSignal): Promise<readonly PodVmRecord[]> {
		throwIfAborted(signal);
		if (this.host.isAway) {
			throw new AdaptorError({code: 'unavailable', what: 'The host is not reachable'});
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
		how: 'its domain no longer exists',
		remedy: 'The pod has to be made anew.',
		isRemoved: true,
	});
}

function throwIfAborted(signal: AbortSignal): void {
	if (signal.aborted) {
		throw toError(signal.reason);
	}
}

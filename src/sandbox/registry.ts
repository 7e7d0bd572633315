/**
 * All sandboxes of this node: who exists, who has to make way for whom, who waits for a VM. The life of each is sandbox.ts's.
 */
import {AdaptorError} from '../errors.ts';
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import {occupiesPlace, refusal, vmIn} from './admission.ts';
import {reapOrphans, type ReapingTimes} from './orphans.ts';
import type {CreateSandbox, PodIdentity, PodVmRecord, Sandboxes, SandboxId} from './ports.ts';
import {Sandbox} from './sandbox.ts';
import type {SandboxWorld} from './world.ts';

type PodName = Pick<PodIdentity, 'name' | 'namespace'>;

export interface RegistryOptions extends SandboxWorld, ReapingTimes {
	/** Sandboxes that may have a VM at a time on this node, asked at each creation: it may change. No limit when undefined. */
	readonly maxSandboxes: () => number | undefined;
	/** How long closing waits for what is to be unwound or removed. */
	readonly closeTimeoutMs: number;
}

export class SandboxRegistry implements Sandboxes, AsyncDisposable {
	readonly #world: RegistryOptions;
	readonly #sandboxes = new Map<SandboxId, Sandbox>();
	readonly #vmWaiters = new Set<{readonly pod: PodName; readonly resolve: (name: string) => void}>();
	/** Stops go on when their caller is gone; closing waits for them. */
	readonly #stops = new Set<Promise<unknown>>();
	/** Recovery and the search for orphans. */
	readonly #background: Promise<unknown>[] = [];
	/** Aborts when closing begins. */
	readonly #closing = new AbortController();
	#closed: Promise<void> | undefined;

	constructor(world: RegistryOptions) {
		this.#world = world;
	}

	/**
	 * Takes up what an earlier run of the daemon has left. Resolves when all its sandboxes are known: calls for them may come from then on, and
	 * wait until it is settled, in the background, what has become of each. VMs that no sandbox is known for are searched for from then on.
	 * @param halfMadeGraceMs how long to leave starts alone that seem to be cut off: not at all when no other daemon can be at them
	 */
	async recover(halfMadeGraceMs: Promise<number>): Promise<void> {
		const vms = this.#listing();
		for (const record of await this.#world.records.readAll()) {
			const {id} = record;
			if (!isUsableId(id) || this.#sandboxes.has(id)) {
				continue;
			}

			const sandbox = new Sandbox(id, this.#world, this.#changed, {name: 'recovering', record});
			this.#sandboxes.set(id, sandbox);
			this.#background.push(sandbox.recover(record, {vms, halfMadeGraceMs}));
		}

		this.#background.push(reapOrphans({
			...this.#world,
			// What we would never have made a sandbox of is not ours to look for.
			isKnown: id => this.#sandboxes.has(id) || !isUsableId(id),
			reap: async id => this.#stop(id),
		}, this.#closing.signal));
	}

	async create(request: CreateSandbox, signal: AbortSignal): Promise<{readonly agentSocketPath: string}> {
		const {id} = request;
		this.#assertOpen();
		assertUsable(request);
		if (this.#sandboxes.has(id)) {
			throw new AdaptorError({code: 'already-exists', what: 'A sandbox with this id exists', where: {sandboxId: id}, remedy: 'Stop it first.'});
		}

		this.#assertPlace();
		const sandbox = new Sandbox(id, this.#world, this.#changed);
		this.#sandboxes.set(id, sandbox);
		await sandbox.create(request, signal);
		this.#stopOlderOf(sandbox);
		return {agentSocketPath: sandbox.agentSocketPath};
	}

	async start(id: SandboxId, signal: AbortSignal): Promise<void> {
		this.#assertOpen();
		const sandbox = this.#sandboxes.get(id);
		if (sandbox === undefined) {
			throw refusal(id, 'not-found');
		}

		await sandbox.start(signal);
	}

	async stop(id: SandboxId, signal: AbortSignal): Promise<void> {
		this.#assertOpen();
		await abortable(this.#stop(id), signal);
	}

	async vmOf(pod: PodName, wait: boolean, signal: AbortSignal): Promise<string> {
		this.#assertOpen();
		for (const sandbox of this.#sandboxes.values()) {
			const vm = vmIn(sandbox.state);
			if (vm !== undefined && isSamePod(sandbox.pod, pod)) {
				return vm.name;
			}
		}

		if (!wait) {
			throw new AdaptorError({code: 'not-found', what: 'The pod has no VM on this node', where: {pod: `${pod.namespace}/${pod.name}`}});
		}

		const {promise, resolve} = Promise.withResolvers<string>();
		const waiter = {pod, resolve};
		this.#vmWaiters.add(waiter);
		using scope = new Scope(signal, this.#closing.signal);
		try {
			return await abortable(promise, scope.signal);
		} finally {
			this.#vmWaiters.delete(waiter);
		}
	}

	/**
	 * Takes no new work, ends starts (they unwind), waits for stops, for a while: what is not done by then is on record, for the next daemon.
	 * Running VMs are left alone.
	 */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		await this.#closed;
	}

	async #close(): Promise<void> {
		this.#closing.abort(stoppingError());
		const closing = new Set(this.#sandboxes.values());
		const settled = Promise.allSettled([
			...[...closing].map(async sandbox => sandbox.close().finally(() => closing.delete(sandbox))), ...this.#stops, ...this.#background,
		]);
		using scope = new Scope().deadline(this.#world.closeTimeoutMs, 'sandboxes to be unwound or removed');
		try {
			await abortable(settled, scope.signal);
		} catch (error) {
			this.#world.log.warn({err: error, count: closing.size}, 'ending before everything is unwound: it is on record, the next daemon goes on');
		}
	}

	async #stop(id: SandboxId, why?: string): Promise<void> {
		const sandbox = this.#sandboxes.get(id) ?? this.#unknown(id);
		if (sandbox === undefined) {
			return;
		}

		const stop = sandbox.stop(why);
		this.#stops.add(stop);
		try {
			await stop;
		} finally {
			this.#stops.delete(stop);
		}
	}

	/** Of an earlier run of the daemon, perhaps: the hypervisor knows. Undefined for an id that no sandbox can have had. */
	#unknown(id: SandboxId): Sandbox | undefined {
		if (!isUsableId(id)) {
			return undefined;
		}

		const sandbox = new Sandbox(id, this.#world, this.#changed, {name: 'stopping', remains: {mayHaveVm: true}});
		this.#sandboxes.set(id, sandbox);
		return sandbox;
	}

	/** kubelet gives up on a start after some minutes and asks for the same pod with a new id; the older one only costs then. */
	#stopOlderOf(newer: Sandbox): void {
		for (const older of this.#sandboxes.values()) {
			if (older === newer) {
				// A map keeps the order of insertion: what follows is newer still.
				return;
			}

			if (newer.pod === undefined || !isSamePod(older.pod, newer.pod) || older.state.name === 'stopping') {
				continue;
			}

			const names = {sandboxId: older.id, pod: `${newer.pod.namespace}/${newer.pod.name}`};
			this.#world.log.warn({...names, reason: `superseded by sandbox ${newer.id}`}, 'stopping the older sandbox of a pod');
			this.#stop(older.id, `The pod has a newer sandbox, ${newer.id}`).catch((error: unknown) => {
				this.#world.log.warn({...names, err: error}, 'could not remove the older sandbox of a pod, it is tried again');
			});
		}
	}

	readonly #changed = (sandbox: Sandbox): void => {
		const vm = vmIn(sandbox.state);
		for (const waiter of vm === undefined ? [] : this.#vmWaiters) {
			if (vm !== undefined && isSamePod(sandbox.pod, waiter.pod)) {
				waiter.resolve(vm.name);
			}
		}

		if (sandbox.state.name === 'gone') {
			this.#sandboxes.delete(sandbox.id);
		}
	};

	/** The hypervisor's list, asked for once at a time whoever wants it, and until it answers. */
	#listing(): (signal: AbortSignal) => Promise<readonly PodVmRecord[]> {
		let listing: Promise<readonly PodVmRecord[]> | undefined;
		return async signal => {
			const pauses = backOff(...this.#world.removalRetryMs);
			for (;;) {
				listing ??= this.#world.podVms.list(this.#closing.signal).finally(() => {
					listing = undefined;
				});
				try {
					return await abortable(listing, signal);
				} catch (error) {
					signal.throwIfAborted();
					this.#world.log.debug({err: error}, 'the VMs of this node cannot be listed yet');
					await pause(pauses.next().value, signal);
				}
			}
		};
	}

	#assertPlace(): void {
		const maxSandboxes = this.#world.maxSandboxes();
		const taken = [...this.#sandboxes.values()].filter(({state}) => occupiesPlace(state)).length;
		if (maxSandboxes !== undefined && taken >= maxSandboxes) {
			throw new AdaptorError({
				code: 'resource-exhausted',
				what: 'This node has as many pod VMs as it may have',
				where: {count: taken, limit: maxSandboxes},
				remedy: 'Raise PEERPODS_LIMIT_PER_NODE if the KVM host has room for more, or let the scheduler use other nodes.',
			});
		}
	}

	#assertOpen(): void {
		if (this.#closing.signal.aborted) {
			throw stoppingError();
		}
	}
}

function stoppingError(): AdaptorError {
	return new AdaptorError({code: 'unavailable', what: 'The daemon is stopping', remedy: 'Try again when it is back.'});
}

function isSamePod(one: PodName | undefined, other: PodName): boolean {
	return one?.name === other.name && one.namespace === other.namespace;
}

function isUsableId(id: SandboxId): boolean {
	return /^[A-Za-z\d][\w.-]{0,127}$/.test(id);
}

/** The id becomes part of a path and of names at the hypervisor. */
function assertUsable({id, netnsPath}: CreateSandbox): void {
	if (!isUsableId(id)) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The sandbox id is not usable as a file name',
			where: {sandboxId: id.slice(0, 128)},
			remedy: 'It must be 1 to 128 letters, digits, ".", "_" or "-", and begin with a letter or digit.',
		});
	}

	if (!netnsPath.startsWith('/') || netnsPath.includes('\0')) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'The network namespace is not an absolute path',
			where: {sandboxId: id, netns: netnsPath.slice(0, 256)},
			remedy: 'Host-network pods cannot run as peer pods; use the default runtime class for them.',
		});
	}
}

/**
 * All sandboxes of this node: which exist, which are superseded by a newer one, and which calls wait for a VM.
 * sandbox.ts implements a single sandbox.
 */
import {AdaptorError} from '../core/errors.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import {occupiesPlace, refusal, vmIn} from './admission.ts';
import type {SandboxContext} from './context.ts';
import {agentSocketPath} from './identities.ts';
import type {CreateSandbox, OtherDaemons, PodIdentity, Sandboxes, SandboxId} from './ports.ts';
import {Reconciler, type ReconcileTimes} from './reconcile.ts';
import type {SandboxRecord} from './records.ts';
import {Sandbox, type SandboxOwner} from './sandbox.ts';
import {assertUsable, isUsableId} from './sandbox-id.ts';
import type {SandboxView} from './view.ts';

type PodName = Pick<PodIdentity, 'name' | 'namespace'>;

export interface RegistryOptions extends SandboxContext, ReconcileTimes {
	/**
	 * The maximum number of sandboxes with a VM on this node; undefined for no limit. Called at each creation, since it
	 * may change.
	 */
	readonly maxSandboxes: () => number | undefined;
	/** How long closing waits for roll-backs and removals. */
	readonly closeTimeoutMs: number;
}

export class SandboxRegistry implements Sandboxes, AsyncDisposable {
	readonly #context: RegistryOptions;
	readonly #sandboxes = new Map<SandboxId, Sandbox>();
	readonly #reconciler: Reconciler;
	readonly #vmWaiters = new Set<{readonly pod: PodName; readonly resolve: (name: string) => void}>();
	/** Stops continue after their caller has gone; closing waits for them. */
	readonly #stops = new Set<Promise<unknown>>();
	/** Aborts when closing begins. */
	readonly #closing = new AbortController();
	readonly #owner: SandboxOwner;
	#reconciling: Promise<void> | undefined;
	#closed: Promise<void> | undefined;

	constructor(context: RegistryOptions) {
		this.#context = context;
		this.#reconciler = new Reconciler(context, {
			all: () => [...this.#sandboxes.values()],
			get: id => this.#sandboxes.get(id),
			adopt: record => this.#adopt(record),
			remove: async (id, why) => this.#stop(id, why),
		});
		this.#owner = {
			changed: sandbox => this.#changed(sandbox),
			vmEnded: (sandbox, end) => void this.#reconciler.vmEnded(sandbox, end),
		};
	}

	/**
	 * Recovers the sandboxes of an earlier run of the daemon, then reconciles. Resolves when all of them are known.
	 * Calls are accepted from then on; a call waits until its sandbox is in hand or removed.
	 * @param others resolves when the other running daemons are known; nothing is rolled back or removed before
	 */
	async recover(others: Promise<OtherDaemons>): Promise<void> {
		for (const record of await this.#context.records.readAll()) {
			this.#adopt(record);
		}

		const {signal} = this.#closing;
		this.#reconciling = abortable(others, signal)
			.then(async known => this.#reconciler.run(known, signal))
			.catch(() => undefined);
	}

	/** Starts a reconcile round now, because events may have been missed. */
	reconcileSoon(): void {
		this.#reconciler.soon();
	}

	/** All sandboxes as they are now, in the order of their creation. */
	views(): readonly SandboxView[] {
		return [...this.#sandboxes.values()].map(({view}) => view);
	}

	async create(request: CreateSandbox, signal: AbortSignal): Promise<{readonly agentSocketPath: string}> {
		const {id} = request;
		this.#assertOpen();
		assertUsable(request);
		this.#context.relays.assertServable(agentSocketPath(id, this.#context));
		if (this.#sandboxes.has(id)) {
			throw new AdaptorError({
				code: 'already-exists',
				what: 'A sandbox with this id exists',
				where: {sandboxId: id},
				remedy: 'Stop it first.',
			});
		}

		this.#assertPlace();
		const sandbox = new Sandbox(id, this.#context, this.#owner);
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
			throw new AdaptorError({
				code: 'not-found',
				what: 'The pod has no VM on this node',
				where: {pod: `${pod.namespace}/${pod.name}`},
			});
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
	 * Refuses new calls, ends starts (they are rolled back) and waits for stops, up to a time limit. The next daemon
	 * continues from the records. Running VMs are left alone.
	 */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		await this.#closed;
	}

	async #close(): Promise<void> {
		this.#closing.abort(stoppingError());
		const closing = new Set(this.#sandboxes.values());
		const settled = Promise.allSettled([
			...[...closing].map(async sandbox => sandbox.close().finally(() => closing.delete(sandbox))),
			...this.#stops,
			this.#reconciling,
		]);
		using scope = new Scope().deadline(this.#context.closeTimeoutMs, 'sandboxes to be rolled back or removed');
		try {
			await abortable(settled, scope.signal);
		} catch (error) {
			this.#context.observer.notify({kind: 'shutdown-timed-out', error, count: closing.size});
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

	/**
	 * A sandbox that may be from an earlier run of the daemon; the hypervisor knows. Undefined for an invalid id.
	 */
	#unknown(id: SandboxId): Sandbox | undefined {
		if (!isUsableId(id)) {
			return undefined;
		}

		const sandbox = new Sandbox(id, this.#context, this.#owner, {
			name: 'stopping',
			leftovers: {mayHaveVm: true},
		});
		this.#sandboxes.set(id, sandbox);
		return sandbox;
	}

	#adopt(record: SandboxRecord): Sandbox | undefined {
		const {id} = record;
		if (!isUsableId(id) || this.#sandboxes.has(id)) {
			return undefined;
		}

		const sandbox = new Sandbox(id, this.#context, this.#owner, {name: 'recovering', record});
		this.#sandboxes.set(id, sandbox);
		if (record.state !== 'creating') {
			this.#context.networks.adopt(id, record.network);
		}

		return sandbox;
	}

	/**
	 * The kubelet gives up on a start after some minutes, and creates a new sandbox for the same pod. Then the older
	 * one is useless.
	 */
	#stopOlderOf(newer: Sandbox): void {
		for (const older of this.#sandboxes.values()) {
			if (older === newer) {
				// A map keeps the order of insertion: all further entries are newer.
				return;
			}

			if (newer.pod === undefined || !isSamePod(older.pod, newer.pod) || older.state.name === 'stopping') {
				continue;
			}

			const {observer} = this.#context;
			const {names} = older;
			observer.notify({kind: 'sandbox-superseded', sandbox: names, by: newer.id});
			this.#stop(older.id, `The pod has a newer sandbox, ${newer.id}`).catch((error: unknown) => {
				observer.notify({kind: 'superseded-sandbox-not-removed', sandbox: names, error});
			});
		}
	}

	#changed(sandbox: Sandbox): void {
		const vm = vmIn(sandbox.state);
		for (const waiter of vm === undefined ? [] : this.#vmWaiters) {
			if (vm !== undefined && isSamePod(sandbox.pod, waiter.pod)) {
				waiter.resolve(vm.name);
			}
		}

		if (sandbox.state.name === 'gone') {
			this.#sandboxes.delete(sandbox.id);
		}
	}

	#assertPlace(): void {
		const maxSandboxes = this.#context.maxSandboxes();
		const taken = [...this.#sandboxes.values()].filter(({state}) => occupiesPlace(state)).length;
		if (maxSandboxes !== undefined && taken >= maxSandboxes) {
			throw new AdaptorError({
				code: 'resource-exhausted',
				what: 'This node has reached its limit of pod VMs',
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
	return new AdaptorError({
		code: 'unavailable',
		what: 'The daemon is stopping',
		remedy: 'Retry after the restart.',
	});
}

function isSamePod(one: PodName | undefined, other: PodName): boolean {
	return one?.name === other.name && one.namespace === other.namespace;
}

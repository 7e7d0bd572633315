/**
 * All sandboxes of this node: who exists, who has to make way for whom, who waits for a VM. The life of each is
 * sandbox.ts's.
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

type PodName = Pick<PodIdentity, 'name' | 'namespace'>;

export interface RegistryOptions extends SandboxContext, ReconcileTimes {
	/**
	 * Sandboxes that may have a VM at a time on this node, asked at each creation: it may change. No limit when
	 * undefined.
	 */
	readonly maxSandboxes: () => number | undefined;
	/** How long closing waits for what is to be rolled back or removed. */
	readonly closeTimeoutMs: number;
}

export class SandboxRegistry implements Sandboxes, AsyncDisposable {
	readonly #context: RegistryOptions;
	readonly #sandboxes = new Map<SandboxId, Sandbox>();
	readonly #reconciler: Reconciler;
	readonly #vmWaiters = new Set<{readonly pod: PodName; readonly resolve: (name: string) => void}>();
	/** Stops go on when their caller is gone; closing waits for them. */
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
	 * Learns what an earlier run of the daemon has left, and reconciles from then on. Resolves when all its sandboxes
	 * are known: calls for them may come from then on, and wait until each is in hand or removed.
	 * @param others once it is known which other daemons are at work; nothing is rolled back or removed before
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

	/** Reconciles now: something has changed that may have gone unnoticed. */
	reconcileSoon(): void {
		this.#reconciler.soon();
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
	 * Takes no new work, ends starts (they are rolled back), waits for stops, for a while: what is not done by then the
	 * next daemon finds in the records. Running VMs are left alone.
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
	 * Of an earlier run of the daemon, perhaps: the hypervisor knows. Undefined for an id that no sandbox can have had.
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
	 * kubelet gives up on a start after some minutes and asks for the same pod with a new id; the older one only costs
	 * then.
	 */
	#stopOlderOf(newer: Sandbox): void {
		for (const older of this.#sandboxes.values()) {
			if (older === newer) {
				// A map keeps the order of insertion: what follows is newer still.
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
	return new AdaptorError({
		code: 'unavailable',
		what: 'The daemon is stopping',
		remedy: 'Try again when it is back.',
	});
}

function isSamePod(one: PodName | undefined, other: PodName): boolean {
	return one?.name === other.name && one.namespace === other.namespace;
}

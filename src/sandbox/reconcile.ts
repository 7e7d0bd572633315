/**
 * Compares what should exist with what does, and repairs the difference. A round runs when the daemon starts, when the
 * connection to libvirt is restored, when a VM, a predecessor or a successor ends, and every minute. This file makes
 * the observations and carries out what decision.ts decides. Each round:
 *
 *   1. read the records and the sandboxes of this daemon; resume or roll back those that do not depend on the KVM host
 *   2. list the VMs, with a time limit: an unreachable host does not delay the other steps
 *   3. check for each pod whether it still exists
 *   4. decide on each sandbox, and on each VM without a sandbox, and carry out the decisions in the background
 *   5. give the cluster the list of VMs that should be registered
 *
 * The order matters. A record is written before its VM exists, and removed after its VM is gone. So if a list is read
 * after a record with "running" and the VM is missing, the VM has ended. If the list contains a VM and no record was
 * read for it, then the VM has no record.
 */
import {every, Trigger} from '../core/concurrency/every.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {AdaptorError, toError} from '../core/errors.ts';
import {abortable, neverAborts, pause, Scope} from '../core/lifetime.ts';
import type {SandboxState} from './admission.ts';
import type {SandboxContext} from './context.ts';
import {decide, type Decision, type Observation} from './decision.ts';
import type {RegisteredVm, OtherDaemons, PodVmRecord, Presence, SandboxId} from './ports.ts';
import type {SandboxRecord} from './records.ts';
import type {Sandbox} from './sandbox.ts';
import {isUsableId} from './sandbox-id.ts';
import type {PodVmEndedError} from './vm-ended.ts';

export interface ReconcileTimes {
	/** Time between two rounds. */
	readonly reconcileIntervalMs: number;
	/** ORPHAN_GRACE: a VM without a sandbox is removed after this time. */
	readonly orphanGraceMs: number;
	/** A failed sandbox, or one whose VM has ended, is removed after this time without a StopVM. */
	readonly endedGraceMs?: number;
	/** Time limit of a round for the list of VMs. */
	readonly listTimeoutMs?: number;
}

/** The sandboxes that this daemon knows. */
export interface KnownSandboxes {
	readonly all: () => readonly Sandbox[];
	readonly get: (id: SandboxId) => Sandbox | undefined;
	/** Creates a sandbox from a record that is new to this daemon; undefined for an invalid id. */
	readonly adopt: (record: SandboxRecord) => Sandbox | undefined;
	/** Removes the sandbox and its VM, also if this daemon does not know it. */
	readonly remove: (id: SandboxId, why: string) => Promise<void>;
}

/**
 * Long enough for a shim to notice, and for an operator to start an analysis. Short enough because the disks of a pod
 * cost space.
 */
const endedGraceMs = 300_000;
/** A list takes milliseconds. A round must not wait longer for a host that does not answer. */
const listTimeoutMs = 15_000;
/**
 * Interval of reading the records that a predecessor may change. When the predecessor ends, this daemon must serve its
 * sandboxes.
 */
const followEveryMs = 500;

/** The state of a sandbox at the beginning of a round. */
interface Seen {
	readonly sandbox: Sandbox;
	readonly state: SandboxState;
}

/** Whether a pod exists. If it is gone, `why` is the proof. */
interface PodPresence {
	readonly pod: Presence;
	readonly why?: string;
}

export class Reconciler {
	readonly #context: SandboxContext & ReconcileTimes;
	readonly #known: KnownSandboxes;
	readonly #trigger = new Trigger();
	readonly #alone = new FailureLog();
	readonly #unreadable = new FailureLog();
	readonly #failures = new FailureLog();
	/** By id: the time (performance.now()) since which a VM has no sandbox, or since which a sandbox has failed. */
	#since = new Map<SandboxId, number>();
	#others: OtherDaemons | undefined;

	constructor(context: SandboxContext & ReconcileTimes, known: KnownSandboxes) {
		this.#context = context;
		this.#known = known;
	}

	/** Starts the next round now. */
	soon(): void {
		this.#trigger.fire();
	}

	/** Runs until the signal aborts. Never throws. */
	async run(others: OtherDaemons, signal: AbortSignal): Promise<void> {
		this.#others = others;
		const following = this.#followPredecessors(others, signal);
		for await (const _ of every(this.#context.reconcileIntervalMs, signal, this.#trigger)) {
			try {
				await this.#round(others, signal);
				this.#failures.recovered('round');
			} catch (error) {
				if (!signal.aborted && this.#failures.failed('round')) {
					this.#context.observer.notify({kind: 'reconcile-failed', error});
				}
			}
		}

		await following;
	}

	/** Decides at once on a sandbox whose VM has ended. */
	async vmEnded(sandbox: Sandbox, end: PodVmEndedError): Promise<void> {
		const {state, id} = sandbox;
		const others = this.#others;
		// The list of VMs is needed only for sandboxes that this daemon does not serve yet: only those may be removed
		// in this step.
		const vms = state.name === 'recovering' ? await this.#listVms(neverAborts) : undefined;
		const observation: Observation = {
			...servedHere(state),
			vm: 'stopped',
			pod: 'unknown',
			ownership: vms?.find(({sandboxId}) => sandboxId === id)?.ownership ?? 'ours',
			predecessor: others?.hasPredecessor() === true ? 'alive' : 'none',
			successor: (await others?.hasSuccessor()) === true ? 'alive' : 'none',
			isOverdue: false,
		};
		if (sandbox.state === state) {
			await this.#carryOut(decide(observation), {sandbox, state}, end);
		}
	}

	async #round(others: OtherDaemons, signal: AbortSignal): Promise<void> {
		const startedAt = performance.now();
		const successor = (await others.hasSuccessor()) ? 'alive' : 'none';
		// Must be read before the records, because only changes of a predecessor that is still alive are followed.
		const predecessor = others.hasPredecessor() ? 'alive' : 'none';
		if (successor === 'none') {
			await this.#adoptRecords();
			await this.#followSuccessors();
		}

		const daemons = {predecessor, successor} as const;
		const seen = this.#known.all().map((sandbox): Seen => ({sandbox, state: sandbox.state}));
		await Promise.all(
			seen
				.filter(({state}) => state.name === 'recovering')
				.map(async each => this.#reconcile(each, undefined, {pod: 'unknown'}, daemons)),
		);
		const vms = await this.#listVms(signal);
		signal.throwIfAborted();
		await Promise.all(
			seen.map(async each => {
				const presence = await this.#podPresence(each.sandbox, signal);
				await this.#reconcile(each, vms, presence, daemons);
			}),
		);
		const orphans = await this.#reconcileUnknown(seen, vms, daemons);
		if (successor === 'none') {
			this.#context.cluster.reconcile(
				this.#known
					.all()
					.map(expectedVm)
					.filter(vm => vm !== undefined),
			);
		}

		this.#context.observer.notify({
			kind: 'reconciled',
			durationMs: Math.round(performance.now() - startedAt),
			orphans,
		});
	}

	/**
	 * Adopts records that are new to this daemon: those of an earlier run, and those that a predecessor wrote after
	 * this daemon started.
	 */
	async #adoptRecords(): Promise<void> {
		const {records} = this.#context;
		for (const {id} of await records.readAll()) {
			if (this.#known.get(id) === undefined) {
				// Read the record again: if the sandbox has just been removed, its record is already gone.
				const record = await records.read(id).catch(() => undefined);
				if (record !== undefined && this.#known.get(id) === undefined) {
					this.#known.adopt(record);
				}
			}
		}
	}

	/**
	 * A successor that has ended may have started or stopped a sandbox that is only created here. Then its record is
	 * newer.
	 */
	async #followSuccessors(): Promise<void> {
		const created = this.#known
			.all()
			.map((sandbox): Seen => ({sandbox, state: sandbox.state}))
			.filter(({state}) => state.name === 'created');
		await Promise.all(
			created.map(async ({sandbox, state}) => {
				const record = await this.#context.records.read(sandbox.id).catch(() => undefined);
				if ((record?.state === 'running' || record?.state === 'stopping') && sandbox.state === state) {
					await sandbox.follow(record);
				}
			}),
		);
	}

	/** Undefined if the host does not answer in time. */
	async #listVms(signal: AbortSignal): Promise<readonly PodVmRecord[] | undefined> {
		using scope = new Scope(signal).deadline(
			this.#context.listTimeoutMs ?? listTimeoutMs,
			'the list of the VMs of this node',
		);
		try {
			const vms = await abortable(this.#context.podVms.list(scope.signal), scope.signal);
			this.#failures.recovered('list');
			return vms;
		} catch (error) {
			signal.throwIfAborted();
			const isNews = !(error instanceof AdaptorError) && this.#failures.failed('list');
			this.#context.observer.notify({kind: 'vms-not-listed', error, isNews});
			return undefined;
		}
	}

	/** A pod is gone if its namespace is gone, or if its UID is gone from the cluster. */
	async #podPresence({network, vm, state}: Sandbox, signal: AbortSignal): Promise<PodPresence> {
		if (state.name === 'stopping' || state.name === 'gone') {
			return {pod: 'unknown'};
		}

		const {networks, cluster} = this.#context;
		const namespace = network === undefined ? 'unknown' : await networks.presence(network, signal);
		if (namespace === 'gone') {
			return {pod: 'gone', why: `its network namespace ${String(network?.netnsPath)} no longer exists`};
		}

		const object = vm === undefined ? 'unknown' : await cluster.podPresence(vm, signal);
		return object === 'gone'
			? {pod: 'gone', why: 'the pod no longer exists in the cluster'}
			: {pod: namespace === 'unknown' ? object : namespace};
	}

	async #reconcile(
		{sandbox, state}: Seen,
		vms: readonly PodVmRecord[] | undefined,
		presence: PodPresence,
		daemons: Pick<Observation, 'predecessor' | 'successor'>,
	): Promise<void> {
		const {pod, why} = presence;
		// If the state has changed, the next round decides. But a pod that is gone does not come back.
		if (sandbox.state !== state && pod !== 'gone') {
			return;
		}

		const vm = vms?.find(({sandboxId}) => sandboxId === sandbox.id);
		const decision = decide({
			...servedHere(sandbox.state),
			...daemons,
			pod,
			vm: vms === undefined ? 'unknown' : vm === undefined ? 'none' : vm.running ? 'running' : 'stopped',
			ownership: vm?.ownership ?? 'ours',
			isOverdue:
				state.name === 'failed' && this.#hasLasted(sandbox.id, this.#context.endedGraceMs ?? endedGraceMs),
		});
		void this.#carryOut(decision, {sandbox, state: sandbox.state}, undefined, why);
	}

	/**
	 * Decides on VMs at the hypervisor without a known sandbox.
	 * @returns how many of them are not another daemon's; undefined if the VMs are not known
	 */
	async #reconcileUnknown(
		seen: readonly Seen[],
		vms: readonly PodVmRecord[] | undefined,
		daemons: Pick<Observation, 'predecessor' | 'successor'>,
	): Promise<number | undefined> {
		if (vms === undefined) {
			return undefined;
		}

		const orphans = new Set<SandboxId>();
		for (const vm of vms.filter(
			({sandboxId}) => isUsableId(sandboxId) && this.#known.get(sandboxId) === undefined,
		)) {
			const {sandboxId: id, running, ownership} = vm;
			const record = await this.#recordOf(vm);
			orphans.add(id);
			const decision = decide({
				...daemons,
				record,
				isServedHere: false,
				vm: running ? 'running' : 'stopped',
				pod: 'unknown',
				ownership,
				isOverdue: this.#hasLasted(id, this.#context.orphanGraceMs),
			});
			this.#carryOutOnUnknown(decision, vm);
		}

		const failed = seen.filter(({state}) => state.name === 'failed').map(({sandbox: {id}}) => id);
		this.#since = new Map([...this.#since].filter(([id]) => orphans.has(id) || failed.includes(id)));
		return vms.filter(({sandboxId, ownership}) => orphans.has(sandboxId) && ownership !== 'foreign').length;
	}

	async #recordOf({sandboxId, name, pod}: PodVmRecord): Promise<'none' | 'unreadable'> {
		try {
			// If there is a record, the next round adopts it and decides.
			const record = await this.#context.records.read(sandboxId);
			this.#unreadable.recovered(sandboxId);
			return record === undefined ? 'none' : 'unreadable';
		} catch (error) {
			if (this.#unreadable.failed(sandboxId)) {
				this.#context.observer.notify({
					kind: 'record-unreadable',
					sandbox: {sandboxId, pod, instanceName: name},
					error,
				});
			}

			return 'unreadable';
		}
	}

	#carryOutOnUnknown(decision: Decision, {sandboxId, name, pod, createdAt, ownership, podsDir}: PodVmRecord): void {
		const {observer} = this.#context;
		const sandbox = {sandboxId, pod, instanceName: name};
		observer.notify({kind: 'decided', sandbox, action: decision.action});
		if (decision.action === 'remove') {
			observer.notify({kind: 'orphan-removal-decided', sandbox, reason: decision.why, createdAt});
			this.#known
				.remove(sandboxId, decision.why)
				.catch((error: unknown) => observer.notify({kind: 'orphan-not-removed', sandbox, error}));
		} else if (ownership === 'foreign' && this.#alone.failed(sandboxId)) {
			const reason = 'it belongs to a daemon with another PODS_DIR';
			observer.notify({kind: 'vm-left-alone', sandbox, reason, podsDir});
		}
	}

	/** Never throws. */
	async #carryOut(decision: Decision, {sandbox, state}: Seen, end?: PodVmEndedError, why?: string): Promise<void> {
		const {observer} = this.#context;
		const {id, names} = sandbox;
		observer.notify({kind: 'decided', sandbox: names, action: decision.action});
		try {
			switch (decision.action) {
				case 'serve': {
					return;
				}

				case 'resume': {
					sandbox.resume(this.#others?.hasPredecessor() === true);
					return;
				}

				case 'end': {
					await sandbox.end(end ?? (await this.#endOf(state)));
					return;
				}

				case 'let go': {
					await sandbox.letGo(
						end ??
							new AdaptorError({
								code: 'aborted',
								what: 'The pod is served by another daemon',
								where: {sandboxId: id},
							}),
					);
					return;
				}

				case 'roll back': {
					await sandbox.rollBack(end ?? (await this.#reasonToRollBack(decision.why, sandbox, state)));
					return;
				}

				case 'remove': {
					const reason = why ?? decision.why;
					const isUnderWay = servedHere(state).record === 'stopping';
					observer.notify({kind: 'removal-decided', sandbox: names, reason, isUnderWay});
					await this.#known.remove(id, `The sandbox is removed: ${reason}`);
					return;
				}

				case 'wait': {
					observer.notify({kind: 'decision-postponed', sandbox: names, reason: decision.why});
					return;
				}

				case 'leave alone': {
					if (this.#alone.failed(id)) {
						observer.notify({kind: 'sandbox-left-alone', sandbox: names, reason: decision.why});
					}
				}
			}
		} catch (error) {
			if (!isEnding(error)) {
				observer.notify({kind: 'decision-not-carried-out', sandbox: names, error});
			}
		}
	}

	/** Asks the hypervisor how the VM ended. Only called if a list shows that it does not run. */
	async #endOf(state: SandboxState): Promise<AdaptorError> {
		const vm =
			state.name === 'running'
				? state.vm
				: state.name === 'recovering' && state.record.state === 'running'
					? state.record.vm
					: undefined;
		if (vm === undefined) {
			return new AdaptorError({code: 'aborted', what: 'The pod VM ended'});
		}

		using scope = new Scope().deadline(
			this.#context.listTimeoutMs ?? listTimeoutMs,
			'libvirt to report how the pod VM ended',
		);
		try {
			return await this.#context.podVms.ended(vm, scope.signal);
		} catch (error) {
			return new AdaptorError({
				code: 'aborted',
				what: 'The pod VM ended',
				where: {instanceName: vm.name},
				cause: toError(error),
			});
		}
	}

	async #reasonToRollBack(why: string, {id}: Sandbox, state: SandboxState): Promise<AdaptorError> {
		return state.name === 'recovering' && state.record.state === 'running'
			? this.#endOf(state)
			: new AdaptorError({code: 'aborted', what: `The sandbox was rolled back: ${why}`, where: {sandboxId: id}});
	}

	/**
	 * Follows the changes of running predecessors to their sandboxes. When they have ended, decides on their sandboxes.
	 * Never throws.
	 */
	async #followPredecessors(others: OtherDaemons, signal: AbortSignal): Promise<void> {
		if (!others.hasPredecessor()) {
			return;
		}

		using waiting = new Scope(signal);
		const ended = others
			.predecessorsEnded(waiting.signal)
			.then(() => waiting.abort(new Error('all predecessors have ended')))
			.catch(() => undefined);
		try {
			for (;;) {
				await this.#follow();
				await pause(followEveryMs, waiting.signal);
			}
		} catch {
			// All predecessors have ended, or this daemon ends.
		}

		await ended;
		if (!signal.aborted) {
			// Read what the predecessors wrote just before they ended.
			await this.#follow();
			this.#context.observer.notify({kind: 'predecessors-ended'});
			this.#trigger.fire();
		}
	}

	/** Never throws. */
	async #follow(): Promise<void> {
		const {records, observer} = this.#context;
		const followed = this.#known
			.all()
			.filter(
				({state}) => state.name === 'recovering' || (state.name === 'created' && state.isElsewhereToo === true),
			);
		const changes = await Promise.allSettled(
			followed.map(async sandbox => {
				const {state} = sandbox;
				const known = state.name === 'recovering' ? state.record.state : 'created';
				const record = await records.read(sandbox.id);
				if (record?.state !== known && sandbox.state === state) {
					await sandbox.follow(record);
					return true;
				}

				return false;
			}),
		);
		for (const change of changes) {
			if (change.status === 'rejected') {
				observer.notify({kind: 'predecessor-record-unreadable', error: change.reason});
			}
		}

		if (changes.some(change => change.status === 'fulfilled' && change.value)) {
			this.#trigger.fire();
		}
	}

	#hasLasted(id: SandboxId, graceMs: number): boolean {
		const now = performance.now();
		const since = this.#since.get(id) ?? now;
		this.#since.set(id, since);
		return now - since >= graceMs;
	}
}

/** The part of the observation that depends on the state. */
function servedHere(state: SandboxState): Pick<Observation, 'record' | 'isServedHere'> {
	switch (state.name) {
		case 'recovering': {
			return {record: state.record.state, isServedHere: false};
		}

		case 'booting': {
			return {record: 'starting', isServedHere: true};
		}

		case 'gone': {
			return {record: 'none', isServedHere: true};
		}

		case 'creating':
		case 'created':
		case 'starting':
		case 'running':
		case 'failed':
		case 'stopping': {
			return {record: state.name, isServedHere: true};
		}
	}
}

/** The VM to register with the cluster, of every sandbox that may have one. */
function expectedVm({state, vm}: Sandbox): RegisteredVm | undefined {
	switch (state.name) {
		case 'recovering':
		case 'starting':
		case 'booting':
		case 'running': {
			return vm;
		}

		case 'failed':
		case 'stopping': {
			return state.leftovers.mayHaveVm ? vm : undefined;
		}

		case 'creating':
		case 'created':
		case 'gone': {
			return undefined;
		}
	}
}

function isEnding(error: unknown): boolean {
	return error instanceof AdaptorError && error.code === 'unavailable' && error.what === 'The daemon is stopping';
}

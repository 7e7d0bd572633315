/**
 * One sandbox: its state, and the order of creation and removal. The shim calls `create`, `start` and `stop`;
 * reconcile.ts calls `resume`, `rollBack`, `end` and `letGo`. admission.ts decides which action is allowed; the ports
 * do the work. Does not know other sandboxes. Its tasks run one at a time: they use the key of the sandbox in the mutex
 * of the context.
 */
import {Change} from '../core/concurrency/change.ts';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {neverAborts, Scope} from '../core/lifetime.ts';
import type {Without} from '../core/observer.ts';
import {
	admitStart,
	assertTransition,
	leftoversOf,
	nothing,
	refusal,
	type Leftovers,
	type Prepared,
	type SandboxState,
	type StateOf,
	vmIn,
} from './admission.ts';
import {bringUp} from './bring-up.ts';
import type {SandboxContext} from './context.ts';
import type {SandboxEvent, SandboxNames} from './events.ts';
import {agentSocketPath, createdEvent, registeredVm, runningVm} from './identities.ts';
import {podRequest, type PodRequest} from './pod-request.ts';
import type {RegisteredVm, CreateSandbox, PodIdentity, PodNetwork, SandboxId} from './ports.ts';
import {prepare} from './preparation.ts';
import {RecordWriter} from './record-writer.ts';
import type {SandboxRecord} from './records.ts';
import {clear, RemovalRetries} from './removal.ts';
import {resumeCreated, resumeRunning} from './resumption.ts';
import {reportAfter, StartProgress} from './start-progress.ts';
import type {Stages} from './stages.ts';
import {addressIn, type SandboxView} from './view.ts';
import {PodVmEndedError} from './vm-ended.ts';

/**
 * The caller of a start that timed out waits at most this long for the roll-back, because its own time limit is not
 * much longer than START_TIMEOUT.
 */
const rollBackPatienceMs = 5000;

/** A start usually takes less than 20 s. Beyond that, somebody may be waiting and wants to know for what. */
const startReportsMs = [20_000, 60_000, 120_000];

/** The owner of the sandbox: the registry. */
export interface SandboxOwner {
	/** After every change of state. */
	readonly changed: (sandbox: Sandbox) => void;
	/** The VM of a sandbox that runs, or is being resumed, has ended. */
	readonly vmEnded: (sandbox: Sandbox, end: PodVmEndedError) => void;
}

export class Sandbox {
	readonly id: SandboxId;
	readonly agentSocketPath: string;
	readonly #context: SandboxContext;
	readonly #owner: SandboxOwner;
	/**
	 * Ends a creation, a start or a resumption, also a queued one, because the sandbox or the daemon stops.
	 */
	readonly #end = new AbortController();
	readonly #recordWriter: RecordWriter;
	readonly #removalRetries: RemovalRetries;
	/** Of state. */
	readonly #change = new Change();
	/** Set while a sandbox of an earlier run is being resumed. */
	#resumption: Scope | undefined;
	#pod: PodIdentity | undefined;
	#instanceName: string | undefined;
	#state: SandboxState;
	#since = new Date();
	/** Set during a start. */
	#stages: Stages | undefined;

	constructor(
		id: SandboxId,
		context: SandboxContext,
		observer: SandboxOwner,
		state: SandboxState = {name: 'creating', made: nothing},
	) {
		this.id = id;
		this.#context = context;
		this.#owner = observer;
		this.#state = state;
		this.agentSocketPath = agentSocketPath(id, context);
		this.#recordWriter = new RecordWriter(id, context.records);
		this.#removalRetries = new RemovalRetries(
			async () => this.#exclusively(async () => this.#remove('throws')),
			context.removalRetryMs,
			failed => this.#notify({kind: 'removal-failed', ...failed}),
		);
		if (state.name === 'recovering') {
			this.#know(state.record.request);
			this.#recordWriter.remember(state.record);
		}

		this.#notify({kind: 'sandbox-changed', from: undefined, to: state.name});
	}

	get state(): SandboxState {
		return this.#state;
	}

	/** Known when the request is validated. */
	get pod(): PodIdentity | undefined {
		return this.#pod;
	}

	get names(): SandboxNames {
		return {sandboxId: this.id, pod: this.#pod, instanceName: this.#instanceName};
	}

	get view(): SandboxView {
		const state = this.#state;
		return {
			names: this.names,
			state: state.name,
			since: this.#since,
			stage: this.#stages?.current,
			stageSince: this.#stages?.currentSince,
			request: this.#recordWriter.request,
			network: this.#recordWriter.network,
			vm: vmIn(state),
			address: addressIn(state),
			failure: state.name === 'failed' ? state.reason.message : undefined,
			isRemovalPending: this.#removalRetries.isUnderWay,
		};
	}

	/** The reserved network; undefined until the sandbox is created. */
	get network(): PodNetwork | undefined {
		return this.#recordWriter.network;
	}

	/** Identifies the VM to the cluster; undefined until the sandbox is created. */
	get vm(): RegisteredVm | undefined {
		const {request} = this.#recordWriter;
		return request === undefined ? undefined : registeredVm(this.id, request);
	}

	/** Called once, first. On failure, the sandbox is gone and nothing is left. */
	async create({annotations, netnsPath}: CreateSandbox, signal: AbortSignal): Promise<void> {
		const {policy, createTimeoutMs} = this.#context;
		return this.#exclusively(async () => {
			using scope = new Scope(signal, this.#end.signal).deadline(createTimeoutMs, 'the sandbox to be created');
			try {
				const request = podRequest(this.id, annotations, policy);
				this.#know(request);
				for await (const state of prepare(
					this.id,
					request,
					netnsPath,
					this.#context,
					this.#recordWriter,
					scope.signal,
				)) {
					this.#setState(state);
					if (state.name === 'created') {
						this.#notify(createdEvent(this.names, state));
						if (request.limited !== undefined) {
							this.#notify({kind: 'size-limited', limited: request.limited});
						}
					}
				}
			} catch (thrown) {
				await this.#undoCreation();
				throw rootCause(thrown, scope.signal);
			}
		});
	}

	/**
	 * Resolves when the agent can be reached. On failure or abort, everything is rolled back first; if that takes long,
	 * it continues after the caller is answered. The sandbox stays as failed. A start waits until another start of the
	 * sandbox has ended, and until a sandbox of an earlier run is resumed. The waiting time counts towards the time
	 * limit; an abort while waiting changes nothing.
	 */
	async start(signal: AbortSignal): Promise<void> {
		using scope = new Scope(signal).deadline(
			this.#context.startTimeoutMs,
			'the pod VM to be started',
			'START_TIMEOUT',
		);
		const late = Promise.withResolvers<never>();
		late.promise.catch(() => undefined);
		let isDone = false;
		while (!isDone) {
			using waiting = new Scope(scope.signal, this.#end.signal);
			while (this.#state.name === 'recovering') {
				await this.#change.next(waiting.signal);
			}

			isDone = await Promise.race([
				late.promise,
				this.#exclusively(async () => this.#startIfAdmitted(late.reject, scope.signal), scope.signal),
			]);
		}
	}

	/** @returns false if the caller has to wait for the next state of the sandbox */
	async #startIfAdmitted(answer: (reason: AdaptorError) => void, signal: AbortSignal): Promise<boolean> {
		if (this.#state.name === 'recovering') {
			return false;
		}

		if (this.#state.name === 'created' && this.#state.isElsewhereToo === true && (await this.#hasMovedOn())) {
			return false;
		}

		const admitted = admitStart(this.#state);
		if (admitted.verdict === 'refuse') {
			throw refusal(this.id, admitted.why, admitted.cause);
		}

		if (admitted.verdict === 'go' && this.#state.name === 'created') {
			this.#end.signal.throwIfAborted();
			await this.#bringUp(this.#state.prepared, answer, signal);
		}

		return true;
	}

	/** Whether a predecessor has started or removed the sandbox. The caller holds the mutex. */
	async #hasMovedOn(): Promise<boolean> {
		const record = await this.#context.records.read(this.id);
		if (record?.state === 'created') {
			return false;
		}

		this.#recordWriter.remember(record);
		this.#setState(record === undefined ? {name: 'gone'} : {name: 'recovering', record});
		return true;
	}

	/**
	 * Ends running work and removes everything. Resolves when that is done. The removal does not depend on the caller:
	 * after a failure, it is retried in the background until it succeeds. The first failure is thrown, unless only
	 * files in PODS_DIR are left.
	 * @param why the error text for the caller of a start that this ends
	 */
	async stop(why = 'The sandbox was stopped while it was being started'): Promise<void> {
		this.#end.abort(new AdaptorError({code: 'aborted', what: why, where: {sandboxId: this.id}}));
		try {
			await this.#exclusively(async () => this.#remove('goes on'));
		} catch (error) {
			this.#removalRetries.begin();
			throw error;
		}
	}

	/**
	 * The daemon stops: ends a start (it is rolled back) and leaves the relay. Everything else is left alone: the next
	 * daemon finds the record, or the VM, and continues. Never throws.
	 */
	async close(): Promise<void> {
		this.#end.abort(new AdaptorError({code: 'unavailable', what: 'The daemon is stopping'}));
		const noRetries = this.#removalRetries.end();
		try {
			await this.#exclusively(async () => {
				await leftoversOf(this.#state).relay?.leave();
			});
		} catch (error) {
			this.#notify({kind: 'relay-not-closed', error});
		}

		await noRetries;
	}

	/** A predecessor has changed or removed the record. Does nothing if this daemon already serves the sandbox. */
	async follow(record: SandboxRecord | undefined): Promise<void> {
		const state = this.#state;
		this.#resumption?.abort(new AdaptorError({code: 'aborted', what: 'Another daemon has changed the sandbox'}));
		await this.#exclusively(async () => {
			if (this.#state === state && (state.name === 'recovering' || state.name === 'created')) {
				this.#recordWriter.remember(record);
				this.#setState(record === undefined ? {name: 'gone'} : {name: 'recovering', record});
			}
		}, this.#end.signal);
	}

	/**
	 * Resumes a sandbox of an earlier run in the background. Retries until it succeeds, or until the VM has ended,
	 * which is reported to the owner. Does nothing if that is in progress or done.
	 * @param hasPredecessor a predecessor may be starting it
	 */
	resume(hasPredecessor: boolean): void {
		if (this.#state.name === 'recovering' && this.#resumption === undefined && !this.#end.signal.aborted) {
			void this.#resume(this.#state.record, hasPredecessor);
		}
	}

	/**
	 * Removes what was created for a sandbox that cannot continue. After an interrupted creation, nothing is left;
	 * otherwise the sandbox stays as failed.
	 * @param reason the error for later calls
	 */
	async rollBack(reason: AdaptorError): Promise<void> {
		const state = this.#state;
		this.#resumption?.abort(reason);
		await this.#exclusively(async () => {
			if (this.#state !== state) {
				return;
			}

			this.#notify({kind: 'sandbox-rolled-back', error: reason});
			if (state.name === 'recovering' && state.record.state === 'creating') {
				await this.#undoCreation();
				return;
			}

			const leftovers = {...leftoversOf(state), mayHaveVm: true};
			this.#setState({name: 'failed', reason, leftovers: await this.#rollBack(leftovers)});
		}, this.#end.signal);
	}

	/**
	 * The VM has ended by itself. Current and future agent calls fail at once: the relay stays open to answer them.
	 * Everything else also stays until the sandbox is stopped.
	 */
	async end(reason: AdaptorError): Promise<void> {
		const state = this.#state;
		if (state.name === 'running') {
			state.relay.fail(reason);
			this.#notify({kind: 'vm-ended', error: reason, vmId: state.vm.uuid});
			await this.#failed(state, reason, leftoversOf(state));
		}
	}

	/**
	 * Another daemon removes the sandbox or has removed it. The relay answers with the reason until this daemon stops.
	 */
	async letGo(reason: AdaptorError): Promise<void> {
		const state = this.#state;
		if (state.name === 'running') {
			state.relay.fail(reason);
			this.#notify({kind: 'sandbox-handed-over', reason: reason.what, vmId: state.vm.uuid});
			await this.#failed(state, reason, {mayHaveVm: false, relay: state.relay});
		}
	}

	async #failed(state: SandboxState, reason: AdaptorError, leftovers: Leftovers): Promise<void> {
		await this.#exclusively(async () => {
			if (this.#state === state) {
				this.#setState({name: 'failed', reason, leftovers});
			}
		}, this.#end.signal);
	}

	/** Never throws. */
	async #resume(record: SandboxRecord, hasPredecessor: boolean): Promise<void> {
		using scope = new Scope(this.#end.signal);
		this.#resumption = scope;
		const {signal} = scope;
		try {
			await this.#exclusively(async () => {
				const state = await retry(
					async () => this.#resumed(record, hasPredecessor, signal),
					{
						backOff: this.#context.removalRetryMs,
						onFailure: (error, {attempt, retryInMs}) => {
							if (error instanceof PodVmEndedError) {
								throw error;
							}

							// A failure is not a reason to give up a running pod: the host may only be unreachable.
							this.#notify({kind: 'resumption-failed', error, attempt, retryInMs});
						},
					},
					signal,
				);
				this.#setState(state);
				if (state.name === 'running') {
					this.#notify({kind: 'sandbox-resumed', vm: runningVm(state)});
				} else {
					this.#notify({kind: 'created-sandbox-resumed', vni: state.prepared.network.vxlanId});
				}
			}, signal);
		} catch (error) {
			if (error instanceof PodVmEndedError && !signal.aborted) {
				this.#owner.vmEnded(this, error);
			}
		} finally {
			this.#resumption = undefined;
		}
	}

	async #resumed(
		record: SandboxRecord,
		hasPredecessor: boolean,
		signal: AbortSignal,
	): Promise<StateOf<'created' | 'running'>> {
		switch (record.state) {
			case 'running': {
				return resumeRunning(
					record,
					this.#context,
					this.#recordWriter,
					failed => this.#notify({kind: 'resumption-failed', ...failed}),
					signal,
				);
			}

			case 'created': {
				return resumeCreated(record, this.#context, hasPredecessor, signal);
			}

			case 'creating':
			case 'stopping': {
				throw new AdaptorError({
					code: 'internal',
					what: `A sandbox whose record says ${record.state} cannot be resumed`,
					where: {sandboxId: this.id},
				});
			}
		}
	}

	/**
	 * @param answer called with the reason if the start fails and its roll-back takes long, so that the caller does not
	 * have to wait
	 */
	async #bringUp(prepared: Prepared, answer: (reason: AdaptorError) => void, signal: AbortSignal): Promise<void> {
		const {podVms} = this.#context;
		this.#setState({name: 'starting', prepared});
		using scope = new Scope(signal, this.#end.signal);
		const progress = new StartProgress();
		const {stages} = progress;
		this.#stages = stages;
		let failure: AdaptorError | undefined;
		using timers = new DisposableStack();
		scope.signal.addEventListener(
			'abort',
			() => {
				const timer = setTimeout(
					() => answer(failure ?? stages.failed(scope.signal.reason, [])),
					this.#context.rollBackPatienceMs ?? rollBackPatienceMs,
				);
				timers.defer(() => clearTimeout(timer));
			},
			{once: true},
		);
		using reports = reportAfter(this.#context.startReportsMs ?? startReportsMs, afterMs => {
			if (!scope.signal.aborted) {
				this.#notify({
					kind: 'start-slow',
					afterMs,
					stage: stages.current ?? 'begin',
					addresses: progress.addresses,
					consoleLine: this.#state.name === 'booting' ? podVms.consoleTail(this.#state.vm).at(-1) : undefined,
				});
			}
		});
		try {
			for await (const state of bringUp(
				this.id,
				prepared,
				this.#context,
				this.#recordWriter,
				progress,
				scope.signal,
			)) {
				this.#setState(state);
				if (state.name === 'running') {
					this.#notify({kind: 'vm-started', vm: runningVm(state), stagesMs: stages.end()});
				}
			}
		} catch (thrown) {
			reports[Symbol.dispose]();
			// A start that is ended on purpose is not reported as a failure.
			const isNews = !this.#end.signal.aborted;
			const reason = (failure = stages.failed(
				rootCause(thrown, scope.signal),
				isNews && this.#state.name === 'booting' ? podVms.consoleTail(this.#state.vm) : [],
			));
			if (isNews) {
				this.#notify({
					kind: 'start-failed',
					error: reason,
					stage: stages.current ?? 'begin',
					stageMs: stages.currentMs,
				});
			}

			const leftovers = await this.#rollBack(leftoversOf(this.#state));
			this.#setState({name: 'failed', reason, leftovers});
			throw reason;
		} finally {
			this.#stages = undefined;
		}
	}

	/** Never throws. */
	async #watch(state: StateOf<'running'>): Promise<void> {
		const {signal} = this.#end;
		try {
			this.#owner.vmEnded(this, await this.#context.podVms.ended(state.vm, signal));
		} catch (error) {
			if (!signal.aborted) {
				this.#notify({kind: 'vm-not-watched', error});
			}
		}
	}

	/**
	 * The caller holds the mutex.
	 * @param onFilesLeft whether files that are left in PODS_DIR are a failure, or are removed in the background
	 */
	async #remove(onFilesLeft: 'throws' | 'goes on'): Promise<void> {
		if (this.#state.name === 'gone') {
			return;
		}

		const startedAt = performance.now();
		const leftovers = leftoversOf(this.#state);
		this.#setState({name: 'stopping', leftovers});
		try {
			await this.#recordWriter.writeStopping();
		} catch (error) {
			// A node that cannot write must still be able to remove pods.
			this.#notify({kind: 'removal-not-recorded', error});
		}

		const filesLeft = await this.#clear(leftovers);
		if (filesLeft !== undefined) {
			if (onFilesLeft === 'throws') {
				throw filesLeft;
			}

			this.#notify({kind: 'removal-failed', error: filesLeft, attempt: 1});
			this.#removalRetries.begin();
			return;
		}

		this.#setState({name: 'gone'});
		this.#notify({
			kind: 'sandbox-removed',
			durationMs: Math.round(performance.now() - startedAt),
			wasKnown: this.#pod !== undefined,
		});
	}

	async #clear(leftovers: Leftovers): Promise<AdaptorError | undefined> {
		return clear(this.id, leftovers, this.#recordWriter.request, this.#context);
	}

	#know({pod, instanceName}: PodRequest): void {
		this.#pod = pod;
		this.#instanceName = instanceName;
	}

	/** Removes a sandbox whose creation failed. Never throws. */
	async #undoCreation(): Promise<void> {
		const leftovers = await this.#rollBack(leftoversOf(this.#state));
		this.#setState(leftovers === nothing ? {name: 'gone'} : {name: 'stopping', leftovers});
	}

	/** Never throws: failures are logged and retried in the background. @returns the leftovers */
	async #rollBack(leftovers: Leftovers): Promise<Leftovers> {
		try {
			const filesLeft = await this.#clear(leftovers);
			if (filesLeft !== undefined) {
				throw filesLeft;
			}

			return nothing;
		} catch (error) {
			this.#notify({kind: 'roll-back-failed', error});
			this.#removalRetries.begin();
			return leftovers;
		}
	}

	#notify(event: Without<SandboxEvent, 'sandbox'>): void {
		this.#context.observer.notify({...event, sandbox: this.names});
	}

	async #exclusively<T>(task: () => Promise<T>, signal: AbortSignal = neverAborts): Promise<T> {
		return this.#context.mutex.run(this.id, task, signal);
	}

	#setState(state: SandboxState): void {
		const {name: from} = this.#state;
		assertTransition(this.id, from, state.name);
		this.#state = state;
		this.#since = new Date();
		this.#notify({kind: 'sandbox-changed', from, to: state.name});
		this.#change.tell();
		this.#owner.changed(this);
		if (state.name === 'running') {
			void this.#watch(state);
		} else if (state.name === 'gone') {
			void this.#removalRetries.end();
		}
	}
}

/**
 * The reason of the signal if the error is only a generic abort of a library; otherwise the error itself.
 */
function rootCause(thrown: unknown, signal: AbortSignal): unknown {
	return signal.aborted && !(thrown instanceof AdaptorError) ? signal.reason : thrown;
}

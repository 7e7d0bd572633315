/**
 * One sandbox: its state, its mailbox, and the order in which things are made and unmade. What may happen when is admission.ts's;
 * how each thing is done is the ports'. Knows nothing of other sandboxes.
 */
import {AdaptorError} from '../errors.ts';
import {pause, Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import {admitStart, nothing, refusal, remainsOf, type Prepared, type Remains, type SandboxState, type StateOf} from './admission.ts';
import {bringUp} from './bring-up.ts';
import {agentSocketPath, createdNames, runningNames} from './names.ts';
import {OwnRecord} from './own-record.ts';
import {podRequest, type PodRequest} from './pod-request.ts';
import type {CreateSandbox, PodIdentity, SandboxId} from './ports.ts';
import {prepare} from './preparation.ts';
import type {SandboxRecord} from './records.ts';
import {movedOn, resume, type Finding, type Recovery} from './recovery.ts';
import {clear, RemovalRetries} from './removal.ts';
import {Stages} from './stages.ts';
import type {SandboxWorld} from './world.ts';

/** Longer than a shim takes to notice, and than an operator who looks needs to begin; short beside what a pod's disks cost. */
const endedGraceMs = 300_000;

/** A start whose time is up is unwound before its caller is answered, for so long at most: START_TIMEOUT is to end within the caller's patience. */
const unwindPatienceMs = 5000;

/** For what must be done whoever waits for it. */
const unconditional = new AbortController().signal;

export class Sandbox {
	readonly id: SandboxId;
	readonly agentSocketPath: string;
	readonly #world: SandboxWorld;
	readonly #onChange: (sandbox: Sandbox) => void;
	/** Ends a creation or a start, also one whose turn has not come: the sandbox is to be stopped, or the daemon is. */
	readonly #end = new AbortController();
	readonly #ownRecord: OwnRecord;
	readonly #removalRetries: RemovalRetries;
	#log: Logger;
	#pod: PodIdentity | undefined;
	#state: SandboxState;

	/** @param onChange called after every change of state */
	constructor(id: SandboxId, world: SandboxWorld, onChange: (sandbox: Sandbox) => void, state: SandboxState = {name: 'creating', made: nothing}) {
		this.id = id;
		this.#world = world;
		this.#onChange = onChange;
		this.#state = state;
		this.agentSocketPath = agentSocketPath(id, world);
		this.#ownRecord = new OwnRecord(id, world.records);
		this.#removalRetries = new RemovalRetries(async () => world.mutex.run(id, async () => this.#remove(), unconditional), world.removalRetryMs);
		this.#log = world.log.child({sandboxId: id});
	}

	get state(): SandboxState {
		return this.#state;
	}

	/** Known once the request was found to be well-formed. */
	get pod(): PodIdentity | undefined {
		return this.#pod;
	}

	/** To be called once, first. On failure the sandbox is gone and nothing is left of it. */
	async create({annotations, netnsPath}: CreateSandbox, signal: AbortSignal): Promise<void> {
		const {policy, createTimeoutMs} = this.#world;
		return this.#world.mutex.run(this.id, async () => {
			using scope = new Scope(signal, this.#end.signal).deadline(createTimeoutMs, 'the sandbox to be created');
			try {
				const request = podRequest(this.id, annotations, policy);
				this.#know(request);
				for await (const state of prepare(this.id, request, netnsPath, this.#world, this.#ownRecord, scope.signal)) {
					this.#setState(state);
					if (state.name === 'created') {
						this.#log.info(createdNames(state), 'sandbox created');
					}
				}
			} catch (thrown) {
				await this.#unmake();
				throw rootCause(thrown, scope.signal);
			}
		}, unconditional);
	}

	/**
	 * To be called once, first, instead of `create`: takes up what an earlier run has left, and tries until that is settled. A running VM is
	 * served again at the same socket; a start that was cut off is unwound, a removal completed. Never throws.
	 */
	async recover(record: SandboxRecord, recovery: Recovery): Promise<void> {
		this.#know(record.request);
		this.#takeUp(record);
		try {
			await this.#world.mutex.run(this.id, async () => this.#settle(recovery), this.#end.signal);
			await this.#followElsewhere(recovery);
		} catch (error) {
			if (!this.#end.signal.aborted) {
				this.#log.error({err: error}, 'what another daemon makes of the sandbox will go unnoticed');
			}
		}
	}

	/** With the mailbox held. Rejects when this is ended. */
	async #settle(recovery: Recovery): Promise<void> {
		const resumption = {...recovery, world: this.#world, ownRecord: this.#ownRecord, log: this.#log};
		while (this.#state.name === 'recovering') {
			await this.#follow(await resume(this.#state.record, resumption, this.#end.signal));
		}
	}

	async #follow(finding: Finding): Promise<void> {
		switch (finding.verdict) {
			case 'goes-on': {
				this.#setState(finding.state);
				return;
			}

			case 'moved-on': {
				this.#takeUp(finding.to);
				return;
			}

			case 'cut-off': {
				await this.#unmake();
				return;
			}

			case 'stopping': {
				try {
					await this.#remove();
				} catch (error) {
					this.#log.warn({err: error}, 'sandbox removal failed, it is tried again');
					this.#removalRetries.begin(this.#log);
				}

				return;
			}

			case 'lost': {
				this.#setState({name: 'failed', reason: finding.reason, remains: await this.#unwind(remainsOf(this.#state))});
			}
		}
	}

	/** @param record none: the daemon before this one has left nothing of it */
	#takeUp(record: SandboxRecord | undefined): void {
		this.#ownRecord.remember(record);
		this.#setState(record === undefined ? {name: 'gone'} : {name: 'recovering', record});
	}

	/**
	 * A start that waits for its turn in a daemon which this one overlaps with leaves no trace yet. Looks for one until that daemon must have
	 * ended; what it has made of the sandbox is taken up then.
	 */
	async #followElsewhere(recovery: Recovery): Promise<void> {
		const {signal} = this.#end;
		const state = this.#state;
		if (state.name !== 'created' || state.isElsewhereToo !== true) {
			return;
		}

		const change = await movedOn({id: this.id, state: 'created'}, this.#world.records, recovery.halfMadeGraceMs, signal);
		await this.#world.mutex.run(this.id, async () => {
			// Unless it was this daemon that started it.
			if (change !== undefined && this.#state === state) {
				await this.#follow(change);
				await this.#settle(recovery);
			}
		}, signal);
	}

	/**
	 * Resolves when the agent can be reached. On failure or abort everything is unwound first, unless that takes long: then it goes on when the
	 * caller has its answer. The sandbox stays, failed. Behind another start, or until it is known what an earlier run has left of it, it waits
	 * for its turn: an abort then changes nothing. That counts towards its time, too.
	 */
	async start(signal: AbortSignal): Promise<void> {
		using scope = new Scope(signal).deadline(this.#world.startTimeoutMs, 'the pod VM to be started (START_TIMEOUT)');
		const late = Promise.withResolvers<never>();
		const whole = this.#world.mutex.run(this.id, async () => {
			const admitted = admitStart(this.#state);
			if (admitted.verdict === 'refuse') {
				throw refusal(this.id, admitted.why, admitted.cause);
			}

			if (admitted.verdict === 'go' && this.#state.name === 'created') {
				this.#end.signal.throwIfAborted();
				await this.#bringUp(this.#state.prepared, late.reject, scope.signal);
			}
		}, scope.signal);
		await Promise.race([whole, late.promise]);
	}

	/**
	 * Ends whatever is under way, removes everything, and says when. The removal does not depend on the caller: what fails is tried again
	 * until it succeeds, in the background; the first failure is thrown.
	 * @param why what the caller of a start that this ends gets to read
	 */
	async stop(why = 'The sandbox was stopped while it was being started'): Promise<void> {
		this.#end.abort(new AdaptorError({code: 'aborted', what: why, where: {sandboxId: this.id}}));
		try {
			await this.#world.mutex.run(this.id, async () => this.#remove(), unconditional);
		} catch (error) {
			this.#removalRetries.begin(this.#log);
			throw error;
		}
	}

	/**
	 * The daemon stops: ends a start (it unwinds), and closes the relay that is open. Its VM is left alone, and so is what was only
	 * created or is being removed: the next daemon finds the record, or the VM, and goes on. Never throws.
	 */
	async close(): Promise<void> {
		this.#end.abort(new AdaptorError({code: 'unavailable', what: 'The daemon is stopping'}));
		const noRetries = this.#removalRetries.end();
		try {
			await this.#world.mutex.run(this.id, async () => {
				await remainsOf(this.#state).relay?.[Symbol.asyncDispose]();
			}, unconditional);
		} catch (error) {
			this.#log.warn({err: error}, 'agent relay did not close');
		}

		await noRetries;
	}

	/** @param answer for a caller who is not to wait until this rejects: told why, when the start is over and its unwinding takes long */
	async #bringUp(prepared: Prepared, answer: (reason: AdaptorError) => void, signal: AbortSignal): Promise<void> {
		const {podVms, cluster} = this.#world;
		this.#setState({name: 'starting', prepared});
		using scope = new Scope(signal, this.#end.signal);
		const stages = new Stages();
		let failure: AdaptorError | undefined;
		using timers = new DisposableStack();
		scope.signal.addEventListener('abort', () => {
			const timer = setTimeout(() => answer(failure ?? stages.failed(scope.signal.reason, [])), this.#world.unwindPatienceMs ?? unwindPatienceMs);
			timers.defer(() => clearTimeout(timer));
		}, {once: true});
		try {
			for await (const state of bringUp(this.id, prepared, this.#world, this.#ownRecord, stages, scope.signal)) {
				this.#setState(state);
				if (state.name === 'running') {
					this.#log.info({...runningNames(state), timings: stages.end()}, 'pod VM started');
				}
			}
		} catch (thrown) {
			// A start that is ended on purpose is no news to whoever ends it.
			const isNews = !this.#end.signal.aborted;
			const reason = failure = stages.failed(rootCause(thrown, scope.signal), isNews && this.#state.name === 'booting' ? podVms.lastWords(this.#state.vm) : []);
			if (isNews) {
				cluster.tell(prepared.request.pod, {type: 'Warning', reason: reason.reason ?? 'PodVMStartFailed', message: reason.message});
			}

			const remains = await this.#unwind(remainsOf(this.#state));
			this.#setState({name: 'failed', reason, remains});
			throw reason;
		}
	}

	/**
	 * Waits for the VM to end by itself. Whoever has calls under way learns it at once, and so does everybody who calls from then on: the relay
	 * is served on for that, and with it everything else stays as it is until the sandbox is stopped. The shim does that as soon as its calls
	 * have ended; one that has died does not, so after a while it is done in its place. A daemon that comes after this one finds on record
	 * what ran, sees that it does not any more, and removes it. Never throws.
	 */
	async #watch(state: StateOf<'running'>): Promise<void> {
		const {signal} = this.#end;
		try {
			const reason = await this.#world.podVms.ended(state.vm, signal);
			state.relay.fail(reason);
			this.#log.warn({err: reason, vmId: state.vm.uuid}, 'pod VM ended by itself');
			this.#world.cluster.tell(state.prepared.request.pod, {type: 'Warning', reason: 'PodVMEnded', message: reason.message});
			await this.#world.mutex.run(this.id, async () => {
				if (this.#state === state) {
					this.#setState({name: 'failed', reason, remains: remainsOf(state)});
				}
			}, signal);
			await pause(this.#world.endedGraceMs ?? endedGraceMs, signal);
		} catch (error) {
			if (!signal.aborted) {
				this.#log.error({err: error}, 'the end of the pod VM will go unnoticed');
			}

			return;
		}

		this.#log.warn({}, 'nobody stopped the sandbox of a pod VM that has ended: it is removed');
		await this.stop().catch((error: unknown) => this.#log.warn({err: error}, 'sandbox removal failed, it is tried again'));
	}

	/** With the mailbox held. */
	async #remove(): Promise<void> {
		if (this.#state.name === 'gone') {
			return;
		}

		const startedAt = performance.now();
		const remains = remainsOf(this.#state);
		this.#setState({name: 'stopping', remains});
		try {
			await this.#ownRecord.writeStopping();
		} catch (error) {
			// A node that cannot write must be able to get rid of pods all the same.
			this.#log.warn({err: error}, 'the removal is not on record and would be forgotten with this daemon');
		}

		await this.#clear(remains);
		this.#setState({name: 'gone'});
		// Of a sandbox that this daemon did not make there may have been nothing.
		this.#log[this.#pod === undefined ? 'debug' : 'info']({durationMs: Math.round(performance.now() - startedAt)}, 'sandbox removed');
	}

	async #clear(remains: Remains): Promise<void> {
		await clear(this.id, remains, this.#ownRecord.request, this.#world);
	}

	#know({pod, instanceName}: PodRequest): void {
		this.#pod = pod;
		this.#log = this.#log.child({pod: `${pod.namespace}/${pod.name}`, instanceName});
	}

	/** Of a creation that failed: nobody is to hear of the sandbox any more. Never throws. */
	async #unmake(): Promise<void> {
		const remains = await this.#unwind(remainsOf(this.#state));
		this.#setState(remains === nothing ? {name: 'gone'} : {name: 'stopping', remains});
	}

	/** Never throws: what went wrong is logged and tried again in the background. @returns what is left to do so for */
	async #unwind(remains: Remains): Promise<Remains> {
		try {
			await this.#clear(remains);
			return nothing;
		} catch (error) {
			this.#log.warn({err: error}, 'unwinding failed, it is tried again');
			this.#removalRetries.begin(this.#log);
			return remains;
		}
	}

	#setState(state: SandboxState): void {
		this.#state = state;
		this.#onChange(this);
		if (state.name === 'running') {
			void this.#watch(state);
		} else if (state.name === 'gone') {
			void this.#removalRetries.end();
		}
	}
}

/** Why work under a signal ended: libraries say of an abort only that there was one. What knows better, such as a host's refusal, stands. */
function rootCause(thrown: unknown, signal: AbortSignal): unknown {
	return signal.aborted && !(thrown instanceof AdaptorError) ? signal.reason : thrown;
}

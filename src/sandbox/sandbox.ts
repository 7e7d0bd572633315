/**
 * One sandbox: its state, its mailbox, and the order in which things are made and unmade. What may happen when is admission.ts's;
 * how each thing is done is the ports'. Knows nothing of other sandboxes.
 */
import {AdaptorError} from '../errors.ts';
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import {admitStart, nothing, remainsOf, remainsOnRecord, type Prepared, type Remains, type SandboxState} from './admission.ts';
import {guestFiles} from './guest-files.ts';
import {Mailbox} from './mailbox.ts';
import {podRequest, type PodPolicy, type PodRequest} from './pod-request.ts';
import type {AgentRelay, AgentRelays, ClaimedVm, Cluster, CreateSandbox, PodIdentity, PodNetworks, PodVms, RelayTarget, SandboxId} from './ports.ts';
import type {SandboxRecord, SandboxRecords} from './records.ts';
import {changeOnRecord, isLost, startingWith, type Recovery} from './recovery.ts';
import {Stages} from './stages.ts';
import type {StartQueue} from './start-queue.ts';

/** What every sandbox of a daemon shares. */
export interface SandboxWorld {
	readonly podVms: PodVms;
	readonly networks: PodNetworks;
	readonly relays: AgentRelays;
	readonly cluster: Cluster;
	readonly records: SandboxRecords;
	/** Starts under way, of all sandboxes. */
	readonly starts: StartQueue;
	readonly policy: PodPolicy;
	/** Every VM is asked to set up scratch space. */
	readonly hasScratchSpace: boolean;
	/** Absolute directory; the agent's socket of a sandbox is `<podsDir>/<id>/agent.ttrpc`. */
	readonly podsDir: string;
	/** Budget of a creation, which only looks at this node. */
	readonly createTimeoutMs: number;
	/** Budget of a whole start. */
	readonly startTimeoutMs: number;
	/** Of it, how long a VM that runs may take until its forwarder answers. */
	readonly agentTimeoutMs: number;
	/** Budget of one attempt to unwind or to remove; independent of any caller's. */
	readonly cleanupTimeoutMs: number;
	/** How long the remains of a VM that has ended by itself wait for somebody to stop the sandbox. */
	readonly endedGraceMs?: number;
	/** Pauses between attempts to remove what could not be removed: the first, and the longest. */
	readonly removalRetryMs: readonly [first: number, longest: number];
	readonly log: Logger;
}

/** `Omit` of each member of a union. */
type DistributedOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

type Running = Extract<SandboxState, {readonly name: 'running'}>;

/** Longer than a shim takes to notice, and than an operator who looks needs to begin; short beside what a pod's disks cost. */
const endedGraceMs = 300_000;

/** For what must be done whoever waits for it. */
const unconditional = new AbortController().signal;

export class Sandbox {
	readonly id: SandboxId;
	readonly agentSocketPath: string;
	readonly #world: SandboxWorld;
	readonly #onChange: (sandbox: Sandbox) => void;
	readonly #mailbox = new Mailbox();
	/** Ends a creation or a start, also one whose turn has not come: the sandbox is to be stopped, or the daemon is. */
	readonly #end = new AbortController();
	/** Ends the wait for the next attempt to remove: it is gone, or the daemon stops. */
	readonly #lastAttempt = new AbortController();
	#log: Logger;
	#pod: PodIdentity | undefined;
	#removal: Promise<void> | undefined;
	/** What every record of this sandbox says, once it is created. */
	#recorded: Pick<Extract<SandboxRecord, {readonly state: 'created'}>, 'id' | 'request' | 'network'> | undefined;
	#state: SandboxState;

	/** @param onChange called after every change of state */
	constructor(id: SandboxId, world: SandboxWorld, onChange: (sandbox: Sandbox) => void, state: SandboxState = {name: 'creating'}) {
		this.id = id;
		this.#world = world;
		this.#onChange = onChange;
		this.#state = state;
		this.agentSocketPath = `${world.podsDir}/${id}/agent.ttrpc`;
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
		const {networks, relays, policy, createTimeoutMs} = this.#world;
		return this.#mailbox.post(async () => {
			using scope = new Scope(signal, this.#end.signal).deadline(createTimeoutMs, 'the sandbox to be created');
			let made = nothing;
			try {
				const request = podRequest(this.id, annotations, policy);
				this.#know(request);
				await this.#record({request, netnsPath, state: 'creating'});
				made = {reservingIn: netnsPath, mayHaveVm: false};
				const network = await networks.reserve(this.id, netnsPath, scope.signal);
				made = {network, mayHaveVm: false};
				const tls = await relays.issue(request.instanceName, scope.signal);
				await this.#record({request, network, state: 'created'});
				scope.signal.throwIfAborted();
				this.#setState({name: 'created', prepared: {request, network, tls}});
				const {vcpus, vcpusFrom, memoryMib, memoryFrom, initdata} = request;
				const measured = initdata === undefined ? {} : {initdata: initdata.digest};
				this.#log.info({vcpus, vcpusFrom, memoryMib, memoryFrom, ...measured, vni: network.vxlanId, netns: netnsPath}, 'sandbox created');
			} catch (thrown) {
				await this.#unmake(made);
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
		await this.#mailbox.post(async () => this.#settle(recovery), unconditional);
		await this.#followElsewhere(recovery);
	}

	/** With the mailbox held: tries to resume until it is settled. */
	async #settle(recovery: Recovery): Promise<void> {
		const pauses = backOff(...this.#world.removalRetryMs);
		const isEnding = (): boolean => this.#end.signal.aborted;
		while (!isEnding() && this.#state.name === 'recovering') {
			try {
				await this.#resume(this.#state.record, recovery);
			} catch (error) {
				if (!isEnding() && isLost(error)) {
					this.#log.warn({err: error}, 'sandbox of an earlier run is lost and removed');
					this.#setState({name: 'failed', reason: error, remains: await this.#unwind(remainsOf(this.#state))});
				} else if (!isEnding()) {
					// The host is away, perhaps: no reason to give a running pod up.
					this.#log.warn({err: error}, 'sandbox of an earlier run not taken up yet, it is tried again');
					await pause(pauses.next().value, this.#end.signal).catch(() => undefined);
				}
			}
		}
	}

	/**
	 * A start that waits for its turn in a daemon which this one overlaps with leaves no trace yet. Looks for one until that daemon must have
	 * ended; what it has made of the sandbox is taken up then. Never throws.
	 */
	async #followElsewhere(recovery: Recovery): Promise<void> {
		const {signal} = this.#end;
		const state = this.#state;
		if (state.name !== 'created' || state.isElsewhereToo !== true) {
			return;
		}

		try {
			const change = await changeOnRecord(this.#world.records, {id: this.id, state: 'created'}, recovery, signal);
			await this.#mailbox.post(async () => {
				// Unless it was this daemon that started it.
				if (change !== undefined && this.#state === state) {
					this.#takeUp(change.to);
					await this.#settle(recovery);
				}
			}, signal);
		} catch (error) {
			if (!signal.aborted) {
				this.#log.error({err: error}, 'what another daemon makes of the sandbox will go unnoticed');
			}
		}
	}

	/** One attempt. @throws what `isLost` tells apart */
	async #resume(record: SandboxRecord, recovery: Recovery): Promise<void> {
		const {signal} = this.#end;
		switch (record.state) {
			case 'creating': {
				if (await this.#isLeftAlone(record, recovery)) {
					this.#log.info({netns: record.netnsPath}, 'creation that was cut off is undone');
					await this.#unmake(remainsOnRecord(record));
				}

				return;
			}

			case 'created': {
				const {request, network} = record;
				const hasVm = async (): Promise<boolean> => (await recovery.vms(signal)).some(({sandboxId}) => sandboxId === this.id);
				if (await hasVm()) {
					if (!await this.#isLeftAlone(record, recovery)) {
						return;
					}

					if (await hasVm()) {
						throw new AdaptorError({code: 'aborted', what: 'The start of the pod VM was cut off when the daemon ended', where: {sandboxId: this.id}});
					}
				}

				const tls = await this.#world.relays.issue(request.instanceName, signal);
				const isElsewhereToo = await abortable(recovery.halfMadeGraceMs, signal) > 0;
				this.#setState({name: 'created', prepared: {request, network, tls}, isElsewhereToo});
				this.#log.info({vni: network.vxlanId}, 'sandbox of an earlier run taken up, not started yet');
				return;
			}

			case 'running': {
				await this.#serveAgain(record);
				return;
			}

			case 'stopping': {
				this.#setState({name: 'stopping', remains: remainsOnRecord(record)});
				try {
					await this.#remove();
				} catch (error) {
					this.#log.warn({err: error}, 'sandbox removal failed, it is tried again');
					this.#removal ??= this.#keepRemoving();
				}
			}
		}
	}

	/**
	 * Whether the daemon before this one leaves a sandbox as it is on record for as long as it may be at it. As soon as it does not, it has
	 * brought that to its end: the sandbox is another step on, which is to be taken up instead, or nothing is left of it.
	 */
	async #isLeftAlone(record: SandboxRecord, recovery: Recovery): Promise<boolean> {
		const change = await changeOnRecord(this.#world.records, record, recovery, this.#end.signal);
		if (change !== undefined) {
			this.#takeUp(change.to);
		}

		return change === undefined;
	}

	/** @param record none: the daemon before this one has left nothing of it */
	#takeUp(record: SandboxRecord | undefined): void {
		this.#recorded = record === undefined || record.state === 'creating' ? undefined : {id: this.id, request: record.request, network: record.network};
		this.#setState(record === undefined ? {name: 'gone'} : {name: 'recovering', record});
	}

	async #serveAgain({request, network, vm, address}: SandboxRecord & {readonly state: 'running'}): Promise<void> {
		const {networks, podVms, relays} = this.#world;
		using looking = new Scope(this.#end.signal);
		const tls = await relays.issue(request.instanceName, looking.signal);
		const relay = await relays.open(this.#target(request), startingWith(address, podVms.addresses(vm, looking.signal)), looking.signal);
		try {
			await networks.attach(network, relay.address, looking.signal);
			await this.#record({request, network, state: 'running', vm, address: relay.address});
			looking.signal.throwIfAborted();
			this.#run({name: 'running', prepared: {request, network, tls}, vm, relay});
			// A claim that an earlier run did not get through to the cluster is made up for.
			void this.#world.cluster.claim(this.#claimOf(request), this.#end.signal).catch(() => undefined);
			this.#log.info({vmId: vm.uuid, address: relay.address, mac: vm.mac, vni: network.vxlanId}, 'sandbox of an earlier run taken up');
		} catch (error) {
			await relay[Symbol.asyncDispose]();
			throw error;
		}
	}

	/**
	 * Resolves when the agent can be reached. On failure or abort everything is unwound first; the sandbox stays, failed.
	 * Behind another start it waits for its turn, and an abort then changes nothing.
	 */
	async start(signal: AbortSignal): Promise<void> {
		return this.#mailbox.post(async () => {
			const admitted = admitStart(this.#state);
			if (admitted.verdict === 'refuse') {
				throw this.#refusal(admitted.why, admitted.cause);
			}

			if (admitted.verdict === 'go' && this.#state.name === 'created') {
				this.#end.signal.throwIfAborted();
				await this.#bringUp(this.#state.prepared, signal);
			}
		}, signal);
	}

	/**
	 * Ends whatever is under way, removes everything, and says when. The removal does not depend on the caller: what fails is tried again
	 * until it succeeds, in the background; the first failure is thrown.
	 * @param why what the caller of a start that this ends gets to read
	 */
	async stop(why = 'The sandbox was stopped while it was being started'): Promise<void> {
		this.#end.abort(new AdaptorError({code: 'aborted', what: why, where: {sandboxId: this.id}}));
		try {
			await this.#mailbox.post(async () => this.#remove(), unconditional);
		} catch (error) {
			this.#removal ??= this.#keepRemoving();
			throw error;
		}
	}

	/**
	 * The daemon stops: ends a start (it unwinds), and closes the relay that is open. Its VM is left alone, and so is what was only
	 * created or is being removed: the next daemon finds the record, or the VM, and goes on. Never throws.
	 */
	async close(): Promise<void> {
		this.#end.abort(new AdaptorError({code: 'unavailable', what: 'The daemon is stopping'}));
		this.#lastAttempt.abort();
		try {
			await this.#mailbox.post(async () => {
				await remainsOf(this.#state).relay?.[Symbol.asyncDispose]();
			}, unconditional);
		} catch (error) {
			this.#log.warn({err: error}, 'agent relay did not close');
		}

		await this.#removal;
	}

	async #bringUp(prepared: Prepared, signal: AbortSignal): Promise<void> {
		const {podVms, networks, relays, cluster, starts, hasScratchSpace, startTimeoutMs, agentTimeoutMs} = this.#world;
		const {request, network, tls} = prepared;
		this.#setState({name: 'starting', prepared});
		using scope = new Scope(signal, this.#end.signal).deadline(startTimeoutMs, 'the pod VM to be started (START_TIMEOUT)');
		const stages = new Stages();
		let relay: AgentRelay | undefined;
		try {
			stages.enter('get a turn to start');
			using _turn = await starts.turn(scope.signal);
			stages.enter('tell the cluster');
			const [pullCredentials] = await Promise.all([
				cluster.pullCredentials(request.pod, scope.signal),
				cluster.claim(this.#claimOf(request), scope.signal),
			]);
			stages.enter('start the VM');
			const vm = await podVms.start({
				sandboxId: this.id,
				instanceName: request.instanceName,
				pod: request.pod,
				vcpus: request.vcpus,
				memoryMib: request.memoryMib,
				...(request.image === undefined ? {} : {image: request.image}),
				vni: network.vxlanId,
				files: guestFiles({pod: request.pod, network, tls, pullCredentials, initdata: request.initdata, hasScratchSpace}),
			}, scope.signal);
			this.#setState({name: 'booting', prepared, vm});
			stages.enter('reach the agent');
			using reaching = new Scope(scope.signal).deadline(agentTimeoutMs, 'the pod VM\'s forwarder to answer (PROXY_TIMEOUT)');
			relay = await relays.open(this.#target(request), podVms.addresses(vm, reaching.signal), reaching.signal);
			stages.enter('attach the network');
			await networks.attach(network, relay.address, scope.signal);
			stages.enter('record that it runs');
			await this.#record({request, network, state: 'running', vm, address: relay.address});
			scope.signal.throwIfAborted();
			this.#run({name: 'running', prepared, vm, relay});
			this.#log.info({vmId: vm.uuid, address: relay.address, mac: vm.mac, vni: network.vxlanId, timings: stages.end()}, 'pod VM started');
		} catch (thrown) {
			const reason = stages.failed(rootCause(thrown, scope.signal), this.#lastWords());
			// A start that is ended on purpose is no news to whoever ends it.
			if (!this.#end.signal.aborted) {
				cluster.tell(request.pod, {type: 'Warning', reason: reason.reason ?? 'PodVMStartFailed', message: reason.message});
			}

			// Also when no VM was started: one that was cut off from the host cannot know, and cannot keep its promise to leave nothing.
			const remains = await this.#unwind({network, mayHaveVm: true, ...(relay === undefined ? {} : {relay})});
			this.#setState({name: 'failed', reason, remains});
			throw reason;
		}
	}

	#run(state: Running): void {
		this.#setState(state);
		void this.#watch(state);
	}

	/**
	 * Waits for the VM to end by itself. Whoever has calls under way learns it at once, and so does everybody who calls from then on: the relay
	 * is served on for that, and with it everything else stays as it is until the sandbox is stopped. The shim does that as soon as its calls
	 * have ended; one that has died does not, so after a while it is done in its place. A daemon that comes after this one finds on record
	 * what ran, sees that it does not any more, and removes it. Never throws.
	 */
	async #watch(state: Running): Promise<void> {
		const {signal} = this.#end;
		try {
			const reason = await this.#world.podVms.ended(state.vm, signal);
			state.relay.fail(reason);
			this.#log.warn({err: reason, vmId: state.vm.uuid}, 'pod VM ended by itself');
			this.#world.cluster.tell(state.prepared.request.pod, {type: 'Warning', reason: 'PodVMEnded', message: reason.message});
			await this.#mailbox.post(async () => {
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

	/** Of a VM whose agent could not be reached, unless because it was to be given up anyway. */
	#lastWords(): readonly string[] {
		return this.#state.name === 'booting' && !this.#end.signal.aborted ? this.#world.podVms.lastWords(this.#state.vm) : [];
	}

	/** With the mailbox held. */
	async #remove(): Promise<void> {
		if (this.#state.name === 'gone') {
			return;
		}

		const startedAt = performance.now();
		const remains = remainsOf(this.#state);
		this.#setState({name: 'stopping', remains});
		await this.#recordStopping();
		await this.#clear(remains);
		this.#setState({name: 'gone'});
		// Of a sandbox that this daemon did not make there may have been nothing.
		this.#log[this.#pod === undefined ? 'debug' : 'info']({durationMs: Math.round(performance.now() - startedAt)}, 'sandbox removed');
	}

	/** In this order: a VNI is free for others only when no VM can use it any more. */
	async #clear({network, reservingIn, mayHaveVm, relay}: Remains): Promise<void> {
		const {podVms, networks, relays, cluster, records, cleanupTimeoutMs} = this.#world;
		using scope = new Scope().deadline(cleanupTimeoutMs, 'the sandbox to be removed');
		const clear = async (): Promise<void> => {
			await relay?.[Symbol.asyncDispose]();
			if (mayHaveVm) {
				await podVms.delete(this.id, scope.signal);
				await relays.discard(this.agentSocketPath);
			}

			// Also without a VM: a daemon that died had perhaps come to the claim and no further.
			if (this.#recorded !== undefined) {
				cluster.disclaim(this.#claimOf(this.#recorded.request));
			}

			if (network !== undefined) {
				await networks.release(network, scope.signal);
			}

			if (reservingIn !== undefined) {
				await networks.abandon(this.id, reservingIn, scope.signal);
			}

			// Last: from here on nobody would look for what is left.
			await records.remove(this.id);
		};

		// A port that ignores its signal must not hold the mailbox for ever.
		await abortable(clear(), scope.signal);
	}

	async #record(record: DistributedOmit<SandboxRecord, 'id'>): Promise<void> {
		if (record.state !== 'creating') {
			this.#recorded = {id: this.id, request: record.request, network: record.network};
		}

		await this.#world.records.write({id: this.id, ...record});
	}

	/** From here on there is no way back, also for the next daemon. A node that cannot write it down must be able to get rid of pods all the same. */
	async #recordStopping(): Promise<void> {
		if (this.#recorded !== undefined) {
			try {
				await this.#world.records.write({...this.#recorded, state: 'stopping'});
			} catch (error) {
				this.#log.warn({err: error}, 'the removal is not on record and would be forgotten with this daemon');
			}
		}
	}

	#know({pod, instanceName}: PodRequest): void {
		this.#pod = pod;
		this.#log = this.#log.child({pod: `${pod.namespace}/${pod.name}`, instanceName});
	}

	#claimOf({instanceName, pod}: PodRequest): ClaimedVm {
		return {sandboxId: this.id, instanceName, pod};
	}

	#target({instanceName}: PodRequest): RelayTarget {
		return {sandboxId: this.id, instanceName, socketPath: this.agentSocketPath};
	}

	/** Of a creation that failed: nobody is to hear of the sandbox any more. Never throws. */
	async #unmake(made: Remains): Promise<void> {
		const remains = await this.#unwind(made);
		this.#setState(remains === nothing ? {name: 'gone'} : {name: 'stopping', remains});
	}

	/** Never throws: what went wrong is logged and tried again in the background. @returns what is left to do so for */
	async #unwind(remains: Remains): Promise<Remains> {
		try {
			await this.#clear(remains);
			return nothing;
		} catch (error) {
			this.#log.warn({err: error}, 'unwinding failed, it is tried again');
			this.#removal ??= this.#keepRemoving();
			return remains;
		}
	}

	/** Never throws. */
	async #keepRemoving(): Promise<void> {
		let attempt = 0;
		for (const delayMs of backOff(...this.#world.removalRetryMs)) {
			try {
				await pause(delayMs, this.#lastAttempt.signal);
			} catch {
				return;
			}

			attempt++;
			try {
				await this.#mailbox.post(async () => this.#remove(), unconditional);
			} catch (error) {
				// An outage of a night is not to fill the log.
				this.#log[Number.isInteger(Math.log2(attempt)) ? 'warn' : 'debug']({err: error, attempt}, 'sandbox removal failed, it is tried again');
			}
		}
	}

	#refusal(why: 'not-found' | 'failed-precondition', cause: AdaptorError | undefined): AdaptorError {
		return new AdaptorError({
			code: why,
			what: why === 'not-found' ? 'There is no such sandbox' : `The sandbox has failed${cause === undefined ? '' : `: ${cause.what}`}`,
			where: {sandboxId: this.id},
			remedy: why === 'not-found' ? 'CreateVM comes first.' : 'Stop it, then create it again.',
			cause,
		});
	}

	#setState(state: SandboxState): void {
		this.#state = state;
		if (state.name === 'gone') {
			this.#lastAttempt.abort();
		}

		this.#onChange(this);
	}
}

/** Why work under a signal ended: libraries say of an abort only that there was one. What knows better, such as a host's refusal, stands. */
function rootCause(thrown: unknown, signal: AbortSignal): unknown {
	return signal.aborted && !(thrown instanceof AdaptorError) ? signal.reason : thrown;
}

/**
 * One sandbox: its state, its mailbox, and the order in which things are made and unmade. What may happen when is admission.ts's;
 * how each thing is done is the ports'. Knows nothing of other sandboxes.
 */
import {AdaptorError, codeOf, toError} from '../errors.ts';
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import {admitStart, toAbort, type Prepared, type SandboxState} from './admission.ts';
import {guestFiles} from './guest-files.ts';
import {Mailbox} from './mailbox.ts';
import {podRequest, type SizePolicy} from './pod-request.ts';
import type {AgentRelays, CreateSandbox, PodIdentity, PodNetworks, PodVms, SandboxId} from './ports.ts';

/** What every sandbox of a daemon shares. */
export interface SandboxWorld {
	readonly podVms: PodVms;
	readonly networks: PodNetworks;
	readonly relays: AgentRelays;
	readonly sizes: SizePolicy;
	/** Absolute directory; the agent's socket of a sandbox is `<podsDir>/<id>/agent.ttrpc`. */
	readonly podsDir: string;
	/** Budget of a whole start. */
	readonly startTimeoutMs: number;
	/** Budget of one attempt to unwind or to remove; independent of any caller's. */
	readonly cleanupTimeoutMs: number;
	/** Pauses between attempts to remove what could not be removed: the first, and the longest. */
	readonly removalRetryMs: readonly [first: number, longest: number];
	readonly log: Logger;
}

export function agentSocketPath(podsDir: string, id: SandboxId): string {
	return `${podsDir}/${id}/agent.ttrpc`;
}

export class Sandbox {
	readonly id: SandboxId;
	readonly agentSocketPath: string;
	readonly #world: SandboxWorld;
	readonly #log: Logger;
	readonly #onChange: (sandbox: Sandbox) => void;
	readonly #mailbox = new Mailbox();
	/** Ends waits for the next attempt to remove; aborted when the daemon stops. */
	readonly #closing = new AbortController();
	#pod: PodIdentity | undefined;
	#removal: Promise<void> | undefined;
	#state: SandboxState = {name: 'creating', abort: new AbortController()};

	/** @param onChange called after every change of state */
	constructor(id: SandboxId, world: SandboxWorld, onChange: (sandbox: Sandbox) => void) {
		this.id = id;
		this.#world = world;
		this.#onChange = onChange;
		this.agentSocketPath = agentSocketPath(world.podsDir, id);
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
		const {networks, relays, sizes} = this.#world;
		return this.#mailbox.post(async () => {
			using scope = new Scope(signal, ...this.#aborts());
			const undo = new AsyncDisposableStack();
			try {
				const request = podRequest(this.id, annotations, sizes);
				this.#pod = request.pod;
				const network = await networks.reserve(this.id, netnsPath, scope.signal);
				undo.defer(async () => this.#bounded('the reserved network to be released', async limit => networks.release(network, limit)));
				const tls = await relays.issue(request.instanceName, scope.signal);
				scope.signal.throwIfAborted();
				undo.move();
				this.#setState({name: 'created', prepared: {request, network, tls}});
				this.#log.info({...this.#names(request), vcpus: request.vcpus, vcpusFrom: request.vcpusFrom, memoryMib: request.memoryMib, memoryFrom: request.memoryFrom, vni: network.vxlanId, netns: netnsPath}, 'sandbox created');
			} catch (error) {
				await this.#unwind(undo);
				this.#setState({name: 'gone'});
				throw error;
			}
		});
	}

	/** Resolves when the agent can be reached. On failure or abort everything is unwound first; the sandbox stays, failed. */
	async start(signal: AbortSignal): Promise<void> {
		return this.#mailbox.post(async () => {
			const admitted = admitStart(this.#state);
			if (admitted.verdict === 'refuse') {
				throw this.#refusal(admitted.why, admitted.cause);
			}

			if (admitted.verdict === 'go' && this.#state.name === 'created') {
				await this.#bringUp(this.#state.prepared, signal);
			}
		});
	}

	/**
	 * Ends whatever is under way, removes everything, and says when. The removal does not depend on the caller: what fails is tried again
	 * until it succeeds, in the background; the first failure is reported.
	 */
	async stop(): Promise<void> {
		toAbort(this.#state)?.abort(new AdaptorError({code: 'aborted', what: 'The sandbox was stopped while it was being started', where: {sandboxId: this.id}}));
		try {
			await this.#mailbox.post(async () => this.#remove());
		} catch (error) {
			this.#removal ??= this.#keepRemoving();
			throw error;
		}
	}

	/**
	 * The daemon stops: ends a start (it unwinds), gives a reservation back, and closes the relay of a running sandbox. Its VM is left alone:
	 * a daemon that ends must not take pods with it.
	 */
	async close(): Promise<void> {
		const reason = new AdaptorError({code: 'unavailable', what: 'The daemon is stopping'});
		this.#closing.abort(reason);
		toAbort(this.#state)?.abort(reason);
		await this.#mailbox.post(async () => {
			if (this.#state.name === 'running') {
				await this.#state.relay[Symbol.asyncDispose]();
			} else {
				await this.#remove();
			}
		});
		await this.#removal;
	}

	async #bringUp(prepared: Prepared, signal: AbortSignal): Promise<void> {
		const {podVms, networks, relays, startTimeoutMs} = this.#world;
		const {request, network, tls} = prepared;
		const log = this.#log.child(this.#names(request));
		const abort = new AbortController();
		this.#setState({name: 'starting', prepared, abort});
		using scope = new Scope(signal, abort.signal).deadline(startTimeoutMs, 'the pod VM to be started (START_TIMEOUT)');
		const stages = new Stages();
		const undo = new AsyncDisposableStack();
		undo.defer(async () => this.#bounded('the reserved network to be released', async limit => networks.release(network, limit)));
		try {
			stages.enter('start the VM');
			// Before there is one: a start that is cut off from the host cannot keep its promise to leave nothing, and says so only by failing.
			undo.defer(async () => this.#bounded('the pod VM to be deleted', async limit => podVms.delete(this.id, limit)));
			const vm = await podVms.start({
				sandboxId: this.id,
				instanceName: request.instanceName,
				pod: request.pod,
				vcpus: request.vcpus,
				memoryMib: request.memoryMib,
				...(request.image === undefined ? {} : {image: request.image}),
				vni: network.vxlanId,
				files: guestFiles({pod: request.pod, network, tls}),
			}, scope.signal);
			this.#setState({name: 'booting', prepared, abort, vm});
			stages.enter('reach the agent');
			const relay = await relays.open({sandboxId: this.id, instanceName: request.instanceName, socketPath: this.agentSocketPath}, podVms.addresses(vm, scope.signal), scope.signal);
			undo.use(relay);
			stages.enter('attach the network');
			await networks.attach(network, relay.address, scope.signal);
			scope.signal.throwIfAborted();
			undo.move();
			this.#setState({name: 'running', prepared, vm, relay});
			log.info({vmId: vm.uuid, address: relay.address, mac: vm.mac, vni: network.vxlanId, timings: stages.end()}, 'pod VM started');
		} catch (thrown) {
			const error = stages.failed(thrown);
			const unwound = await this.#unwind(undo);
			this.#setState({name: 'failed', reason: error, ...(unwound ? {} : {leftovers: prepared})});
			if (!unwound) {
				this.#removal ??= this.#keepRemoving();
			}

			throw error;
		}
	}

	/** With the mailbox held. */
	async #remove(): Promise<void> {
		const state = this.#state;
		if (state.name === 'gone') {
			return;
		}

		const prepared = state.name === 'failed' ? state.leftovers : 'prepared' in state ? state.prepared : undefined;
		const hasVm = state.name === 'running' || state.name === 'failed' || state.name === 'stopping';
		this.#setState(prepared === undefined ? {name: 'stopping'} : {name: 'stopping', prepared});
		if (prepared !== undefined) {
			const startedAt = performance.now();
			try {
				if (state.name === 'running') {
					await state.relay[Symbol.asyncDispose]();
				}

				await this.#bounded('the sandbox to be removed', async limit => {
					if (hasVm) {
						await this.#world.podVms.delete(this.id, limit);
					}

					await this.#world.networks.release(prepared.network, limit);
				});
			} catch (error) {
				this.#log.warn({...this.#names(prepared.request), err: error}, 'sandbox removal failed');
				throw error;
			}

			this.#log.info({...this.#names(prepared.request), durationMs: Math.round(performance.now() - startedAt)}, 'sandbox removed');
		}

		this.#setState({name: 'gone'});
	}

	async #keepRemoving(): Promise<void> {
		const pauses = backOff(...this.#world.removalRetryMs);
		while (this.#state.name !== 'gone') {
			try {
				await pause(pauses.next().value, this.#closing.signal);
				await this.#mailbox.post(async () => this.#remove());
			} catch (error) {
				if (this.#closing.signal.aborted) {
					this.#log.error({err: error}, 'sandbox left behind');
					return;
				}
			}
		}
	}

	/** Never throws: what went wrong is logged, and false is answered. */
	async #unwind(undo: AsyncDisposableStack): Promise<boolean> {
		try {
			await undo.disposeAsync();
			return true;
		} catch (error) {
			this.#log.warn({err: error}, 'unwinding failed');
			return false;
		}
	}

	async #bounded(awaited: string, work: (limit: AbortSignal) => Promise<void>): Promise<void> {
		using scope = new Scope().deadline(this.#world.cleanupTimeoutMs, awaited);
		// A port that ignores its signal must not hold the mailbox for ever.
		await abortable(work(scope.signal), scope.signal);
	}

	#refusal(why: 'not-found' | 'failed-precondition', cause: Error | undefined): AdaptorError {
		return new AdaptorError({
			code: why,
			what: why === 'not-found' ? 'There is no such sandbox' : `The sandbox has failed to start before${cause === undefined ? '' : `: ${cause.message}`}`,
			where: {sandboxId: this.id},
			remedy: why === 'not-found' ? 'CreateVM comes first.' : 'Stop it, then create it again.',
			cause,
		});
	}

	#aborts(): AbortSignal[] {
		const abort = toAbort(this.#state);
		return abort === undefined ? [] : [abort.signal];
	}

	#names({pod, instanceName}: Prepared['request']): {pod: string; instanceName: string} {
		return {pod: `${pod.namespace}/${pod.name}`, instanceName};
	}

	#setState(state: SandboxState): void {
		this.#state = state;
		this.#onChange(this);
	}
}

/** How long each stage of a start took, and which one it is in. */
class Stages {
	readonly #durations: Record<string, number> = {};
	#current: {name: string; since: number} | undefined;

	/** The error that a start ends with: what was wrong, and in which stage after how long. */
	failed(thrown: unknown): AdaptorError {
		const {name, since} = this.#current ?? {name: 'begin', since: performance.now()};
		const {what, where, remedy} = thrown instanceof AdaptorError ? thrown : {what: toError(thrown).message, where: {}, remedy: undefined};
		return new AdaptorError({
			code: codeOf(thrown),
			what: `Could not ${name}: ${what}`,
			where: {...where, stageMs: Math.round(performance.now() - since)},
			...(remedy === undefined ? {} : {remedy}),
			cause: thrown,
		});
	}

	enter(name: string): void {
		this.end();
		this.#current = {name, since: performance.now()};
	}

	/** @returns milliseconds by stage */
	end(): Readonly<Record<string, number>> {
		if (this.#current !== undefined) {
			this.#durations[this.#current.name] = Math.round(performance.now() - this.#current.since);
			this.#current = undefined;
		}

		return this.#durations;
	}
}

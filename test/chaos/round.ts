/**
 * Plays one script on a node, and judges the result by the actual state:
 * - hung: a caller without an answer within its limit, or a daemon that did not come back
 * - lost: a sandbox that was started, was not stopped, and whose VM was not ended, but whose agent does not answer; a
 *   call that failed without a fault; a daemon that ended by itself
 * - leaked: state that is left when all sandboxes are stopped and the daemon had time to clean up
 */
import {readFile} from 'node:fs/promises';
import {toError} from '../../src/core/errors.ts';
import {abortable, pause, Scope} from '../../src/core/lifetime.ts';
import {libvirtCode} from '../../src/libvirt/wire/errors.ts';
import {connect} from '../../src/ttrpc/client.ts';
import {TtrpcError} from '../../src/ttrpc/status.ts';
import {AgentClient} from '../lab/agent-client.ts';
import {newSandboxId, podAnnotations} from '../lab/shim.ts';
import type {Cni} from '../network/testbed.ts';
import type {Fate} from '../support/test-driver-host.ts';
import {clearAside, spelled, spoil, type ChaosNode, type Inventory, type PodNetns} from './node.ts';
import {phases, type Fault, type Loss, type Moment, type Phase, type Script, type Spelling} from './script.ts';

/** Long, because many rounds share two CPUs with other work. A stop waits for the host. */
const limitsMs = {create: 90_000, stop: 90_000, check: 60_000, settle: 150_000, converge: 90_000};
/**
 * Allowed time after START_TIMEOUT: the documented limit is 5 s; the rest is for a slow machine, and for a daemon that
 * must first find the state of the sandbox. Less than the 60 s that a roll-back may take.
 */
const startAllowanceMs = 25_000;
/** Faults that last until the time limit of a start. */
const outlasting: ReadonlySet<Fault['kind']> = new Set(['no-address', 'no-listen', 'away-for-long']);
/** For these faults, and for orphaned VMs. An undisturbed start takes a fifth of it on a busy machine. */
const impatient = {startTimeoutMs: 3000};
const quickToReap = {orphanGraceMs: 300};
/**
 * Faults that only the next reconcile round of the daemon repairs: every minute, or every ORPHAN_GRACE if that is
 * shorter.
 */
const awaitingReconciliation: ReadonlySet<Fault['kind']> = new Set(['shim-killed', 'successor-goes']);
const quickToReconcile = {orphanGraceMs: 2000};
/** Faults that must have no effect. */
const harmless: ReadonlySet<Fault['kind']> = new Set(['alias']);
/** Issued certificates are valid from one day before, so a smaller error of the clock has no effect. */
const clockOffsetMs = -1.5 * 86_400_000;

export interface Verdict {
	readonly leaked: readonly string[];
	readonly lost: readonly string[];
	readonly hung: readonly string[];
	/** The events, in their order. */
	readonly story: readonly string[];
	/** For each fault of the script: whether it happened. */
	readonly happened: ReadonlyMap<Fault, boolean>;
	readonly durationMs: number;
}

interface Pod extends PodNetns {
	readonly cni: Cni;
	readonly id: string;
	/** Aborts when its shim is killed. */
	readonly shim: AbortController;
	agentSocket: string | undefined;
	isStarted: boolean;
	/** Whether it may have a VM. */
	isStartAsked: boolean;
	/** Whether a stop was requested, or will never be requested. */
	isStopped: boolean;
	/** Whether a fault removed its VM, its network or its keys, so that it cannot be served. */
	isDoomed: boolean;
	/** Whether its record was lost. Then the state in its namespace is removed only with the namespace. */
	isForgotten: boolean;
}

type Answer<T> = {readonly value: T} | {readonly error: Error};

const never = new AbortController().signal;

/**
 * @param before the inventory before the round. Leftovers of a round are part of the next inventory, so that they count
 * once
 */
export async function playRound(
	node: ChaosNode,
	script: Script,
	before: Inventory,
): Promise<Verdict & {readonly after: Inventory}> {
	return new Round(node, script, before).play();
}

class Round {
	readonly #node: ChaosNode;
	readonly #script: Script;
	readonly #before: Inventory;
	readonly #startedAt = performance.now();
	readonly #leaked: string[] = [];
	readonly #lost: string[] = [];
	readonly #hung: string[] = [];
	readonly #story: string[] = [];
	readonly #happened = new Map<Fault, boolean>();
	/** Work that faults have started and that is not awaited yet. */
	readonly #sideEffects: Promise<unknown>[] = [];
	readonly #startsAnswered = Promise.withResolvers<undefined>();
	/** Faults that last until then, from any phase. */
	readonly #untilStarted: Promise<unknown>[] = [];
	/** Ends the faults that last until all calls of this phase are answered. */
	readonly #untilAnswered: Array<() => Promise<void>> = [];
	/** The number of faults that keep the KVM host away. */
	#absences = 0;
	/** The number of faults that keep the storage pool undefined. */
	#undefinedPools = 0;
	/** The truncated files. */
	readonly #torn: string[] = [];
	#pods: readonly Pod[] = [];

	constructor(node: ChaosNode, script: Script, before: Inventory) {
		this.#node = node;
		this.#script = script;
		this.#before = before;
	}

	async play(): Promise<Verdict & {readonly after: Inventory}> {
		const node = this.#node;
		this.#pods = await Promise.all(
			this.#script.pods.map(async cni => ({
				...(await node.pod(cni)),
				cni,
				id: newSandboxId(),
				shim: new AbortController(),
				agentSocket: undefined,
				isStarted: false,
				isStartAsked: false,
				isStopped: false,
				isDoomed: false,
				isForgotten: false,
			})),
		);
		if (this.#script.faults.some(({kind}) => awaitingReconciliation.has(kind))) {
			await node.reconfigure(quickToReconcile);
		}

		for (const phase of phases) {
			await this.#during(phase, async () => Promise.all(this.#pods.map(async pod => this.#doPhase(phase, pod))));
			if (phase === 'running') {
				await Promise.all(this.#pods.map(async pod => this.#assertServed(pod)));
			}
		}

		// A caller that lost the connection to the daemon retries, like a kubelet.
		await Promise.all(
			this.#pods.filter(({isStopped}) => !isStopped).map(async pod => this.#stop(pod, 'last stop')),
		);
		// A daemon that runs alone again learns the effects of a call that its successor answered only from the
		// namespace.
		const hadSuccessor = this.#script.faults.some(({kind}) => kind === 'successor-goes');
		await Promise.all(
			this.#pods.filter(({isForgotten}) => isForgotten || hadSuccessor).map(async pod => node.vanish(pod)),
		);
		for (const path of this.#torn) {
			if (!(await clearAside(path))) {
				this.#lost.push(`${path} was truncated, but was not set aside`);
			}
		}

		const after = await this.#converge();
		await node.resetSettings();
		await Promise.all(this.#pods.map(async pod => node.giveBack(pod.cni, pod)));
		this.#lost.push(...node.crashes.splice(0));
		return {
			leaked: this.#leaked,
			lost: this.#lost,
			hung: this.#hung,
			story: this.#story,
			happened: this.#happened,
			after,
			durationMs: Math.round(performance.now() - this.#startedAt),
		};
	}

	async #doPhase(phase: Phase, pod: Pod): Promise<void> {
		const {shim} = this.#node;
		switch (phase) {
			case 'create': {
				const annotations = podAnnotations(pod.name, 'chaos');
				const answer = await this.#answered(pod, 'create', async signal =>
					shim.createVm({id: pod.id, annotations, networkNamespacePath: pod.path}, signal),
				);
				pod.agentSocket = 'value' in answer ? answer.value : undefined;
				return;
			}

			case 'start': {
				if (pod.agentSocket !== undefined && !pod.isStopped) {
					pod.isStartAsked = true;
					const answer = await this.#answered(pod, 'start', async signal => shim.startVm(pod.id, signal));
					pod.isStarted = 'value' in answer;
				}

				return;
			}

			case 'stop': {
				if (!pod.isStopped) {
					await this.#stop(pod);
				}

				return;
			}

			case 'created':
			case 'running': {
				// Long enough for the faults of this phase.
				await pause(this.#script.faults.some(fault => fault.phase === phase) ? 250 : 0, never);
			}
		}
	}

	/** The caller does not repeat an answered stop, even if the answer is an error: the daemon must complete it. */
	async #stop(pod: Pod, name = 'stop'): Promise<void> {
		const answer = await this.#answered(pod, 'stop', async signal => this.#node.shim.stopVm(pod.id, signal), name);
		const isRefused =
			'error' in answer &&
			answer.error instanceof TtrpcError &&
			!answer.error.message.includes('daemon is stopping');
		pod.isStopped = 'value' in answer || isRefused || pod.shim.signal.aborted;
		if ('error' in answer && name === 'last stop') {
			this.#lost.push(
				`the last stop of ${pod.name} failed, although nothing is wrong any more: ${answer.error.message}`,
			);
		}
	}

	/** Runs the work with the faults of the phase. Afterwards all faults are over, and the daemon runs. */
	async #during(phase: Phase, work: () => Promise<unknown>): Promise<void> {
		const node = this.#node;
		const faults = this.#script.faults.filter(fault => fault.phase === phase);
		using timers = new DisposableStack();
		const waiting: Array<{
			readonly moment: Exclude<Moment, {ms: number}>;
			readonly last: number;
			readonly fate: () => Fate['action'];
		}> = [];
		const at = (moment: Moment, fault: Fault, act: () => void): void => {
			const happen = (): void => this.#happen(fault, act);
			if ('ms' in moment) {
				const timer = setTimeout(happen, moment.ms);
				timers.defer(() => clearTimeout(timer));
			} else {
				waiting.push({moment, last: moment.call, fate: () => happen});
			}
		};

		// Once, before any fault is armed: from then on, the host may be away.
		if (
			faults.some(({kind}) => outlasting.has(kind)) &&
			node.settings.startTimeoutMs !== impatient.startTimeoutMs
		) {
			await node.reconfigure(impatient);
		}

		for (const fault of faults) {
			this.#happened.set(fault, false);
			await this.#arm(fault, at, waiting);
		}

		let calls = 0;
		node.onCall = procedure => {
			const call = ++calls;
			if (this.#undefinedPools > 0 && procedure.startsWith('storage')) {
				this.#tell(`${phase}: no pool for ${procedure}, call ${call}`);
				return {when: 'before', action: {refuse: libvirtCode.noStoragePool}};
			}

			const due = waiting.find(({moment, last}) => moment.call <= call && call <= last);
			if (due === undefined) {
				return undefined;
			}

			this.#tell(`${phase}: ${due.moment.when} ${procedure}, call ${call}`);
			return {when: due.moment.when, action: honest(procedure, due.fate())};
		};

		await work();
		// A call of the daemon may start another one.
		for (let end = this.#untilAnswered.shift(); end !== undefined; end = this.#untilAnswered.shift()) {
			await end();
		}

		node.onCall = undefined;
		const areLeft = await node.programs.withdraw();
		for (const fault of faults) {
			if (fault.kind === 'program') {
				this.#happened.set(fault, !areLeft);
			}
		}

		node.isFull = false;
		node.hasLeases = true;
		node.vms.boots = 'listening';
		if (phase === 'start') {
			this.#startsAnswered.resolve(undefined);
			await Promise.all(this.#untilStarted);
		}

		await Promise.all(this.#sideEffects.splice(0));
		await this.#settled();
		if (faults.some(fault => fault.kind === 'lock-holder-killed' && this.#happened.get(fault) === true)) {
			await Promise.all(
				this.#pods
					.filter(({isStarted, isStopped}) => (phase === 'stop' ? !isStopped : !isStarted))
					.map(async pod => this.#assertFinished(pod)),
			);
		}
	}

	async #arm(
		fault: Fault,
		at: (moment: Moment, fault: Fault, act: () => void) => void,
		waiting: Array<{
			readonly moment: Exclude<Moment, {ms: number}>;
			readonly last: number;
			readonly fate: () => Fate['action'];
		}>,
	): Promise<void> {
		const node = this.#node;
		const [first] = this.#pods;
		if (first === undefined) {
			throw new TypeError('A script has a pod');
		}

		const calls = (call: number, times: number, when: Fate['when'], action: Fate['action']): void => {
			waiting.push({
				moment: {call, when},
				last: call + times - 1,
				fate: () => {
					this.#happened.set(fault, true);
					return action;
				},
			});
		};

		switch (fault.kind) {
			case 'refuse': {
				calls(fault.call, fault.times, 'before', {refuse: fault.code});
				return;
			}

			case 'drop':
			case 'freeze': {
				calls(fault.call, 1, fault.when, fault.kind);
				return;
			}

			case 'away': {
				at(fault.at, fault, () => this.#sideEffects.push(this.#beAway(pause(fault.forMs, never))));
				return;
			}

			case 'away-for-long': {
				at(fault.at, fault, () => this.#untilStarted.push(this.#beAway(this.#startsAnswered.promise)));
				return;
			}

			case 'record-lost': {
				at(fault.at, fault, () => {
					node.settings = quickToReap;
					node.restart('SIGKILL', async () => {
						first.isForgotten = await this.#spoil(node.recordPath(first.id), fault.how);
						first.isStopped ||= first.isForgotten && fault.then === 'orphan';
					});
				});
				return;
			}

			case 'shim-killed': {
				at(fault.at, fault, () => {
					first.isDoomed = true;
					first.isStopped = true;
					first.shim.abort(new Error('the shim was killed'));
					this.#sideEffects.push(node.vanish(first));
				});
				return;
			}

			case 'pod-removed': {
				at(fault.at, fault, () => {
					first.isDoomed = true;
					first.isStopped = true;
					node.restart('SIGKILL', async () => node.vanish(first));
				});
				return;
			}

			case 'successor-goes': {
				const end = await node.overlapInVain();
				const act = (): void => end(fault.by);
				at(fault.at, fault, act);
				this.#untilAnswered.push(async () => this.#happen(fault, act));
				return;
			}

			case 'lock-holder-killed': {
				waiting.push({
					moment: fault,
					last: fault.call,
					fate: () => {
						this.#happen(fault, () => node.killPredecessor());
						return 'freeze';
					},
				});
				return;
			}

			case 'alias': {
				at(fault.at, fault, () => this.#sideEffects.push(this.#intrude(first, fault.spelling)));
				return;
			}

			case 'clock-back': {
				at(fault.at, fault, () => this.#sideEffects.push(this.#turnClockBack()));
				return;
			}

			case 'pods-dir-read-only': {
				let isReadOnly: Promise<void> | undefined;
				const act = (): void => {
					isReadOnly = node.makePodsDirReadOnly();
					this.#untilAnswered.push(async () => {
						await isReadOnly;
						if (fault.phase === 'stop' && this.#script.faults.length === 1) {
							await this.#assertOnlyFilesLeft();
						}

						await node.makePodsDirWritable();
					});
				};

				// A stop writes its record before its first call.
				if ('ms' in fault.at) {
					this.#happen(fault, act);
					await isReadOnly;
				} else {
					at(fault.at, fault, act);
				}

				return;
			}

			case 'pool-undefined': {
				at(fault.at, fault, () => {
					// For the whole time, even if all calls are answered.
					const isBack = this.#undefinePool(fault.forMs);
					this.#untilAnswered.push(async () => isBack);
				});
				return;
			}

			case 'identity-lost': {
				at(fault.at, fault, () =>
					node.restart('SIGKILL', async () => {
						if (await this.#spoil(node.identityPath, fault.how)) {
							for (const pod of this.#pods.filter(({isStartAsked}) => isStartAsked)) {
								pod.isDoomed = true;
							}
						}
					}),
				);
				return;
			}

			case 'program': {
				await node.programs.order(fault.program, fault.run, fault.how);
				return;
			}

			case 'disk-full': {
				this.#happen(fault, () => {
					node.isFull = true;
				});
				return;
			}

			case 'no-address': {
				this.#happen(fault, () => {
					node.hasLeases = false;
				});
				return;
			}

			case 'no-listen':
			case 'vm-ends': {
				this.#happen(fault, () => {
					node.vms.boots = fault.kind === 'no-listen' ? 'silent' : 'ending';
				});
				return;
			}

			case 'kill':
			case 'terminate': {
				at(fault.at, fault, () => node.restart(fault.kind === 'kill' ? 'SIGKILL' : 'SIGTERM'));
				return;
			}

			case 'hang-up': {
				at(fault.at, fault, () => first.shim.abort(new Error('the shim was killed')));
				return;
			}

			case 'stop': {
				at(fault.at, fault, () => this.#sideEffects.push(this.#stop(first, 'stop meanwhile')));
				return;
			}

			case 'no-netns': {
				at(fault.at, fault, () => {
					first.isDoomed = true;
					this.#sideEffects.push(node.vanish(first));
				});
				return;
			}

			case 'agent-reset': {
				this.#happen(fault, () => node.vms.reset());
				return;
			}

			case 'vm-dies': {
				if (first.isStarted) {
					this.#happen(fault, () => {
						first.isDoomed = true;
						// Another fault of this kind may have ended it already.
						this.#sideEffects.push(
							node.host.destroy(`podvm-${first.name}-${first.id.slice(0, 8)}`).catch(() => undefined),
						);
					});
				}
			}
		}
	}

	#happen(fault: Fault, act: () => void): void {
		if (this.#happened.get(fault) !== true) {
			this.#happened.set(fault, true);
			this.#tell(`fault: ${JSON.stringify(fault)}`);
			act();
		}
	}

	/** @returns whether it existed */
	async #spoil(path: string, how: Loss): Promise<boolean> {
		const wasThere = await spoil(path, how);
		this.#tell(`${path} ${wasThere ? how : 'is not there'}`);
		if (wasThere && how === 'torn') {
			this.#torn.push(path);
		}

		return wasThere;
	}

	async #beAway(until: Promise<unknown>): Promise<void> {
		if (this.#absences++ === 0) {
			await this.#node.host.away();
		}

		await until;
		if (--this.#absences === 0) {
			await this.#node.host.back();
		}
	}

	/** A daemon completes or rolls back the work that its killed predecessor left, without a request. */
	async #assertFinished({name, id}: Pod): Promise<void> {
		using scope = new Scope().deadline(limitsMs.converge, 'the VM to be removed');
		for (;;) {
			const record = await readFile(this.#node.recordPath(id), 'utf8').catch(() => '{}');
			const left = [...(await this.#node.inventory())].filter(
				each => /^(?:domain|volume) /v.test(each) && each.includes(id.slice(0, 8)),
			);
			// It was complete and only the answer was lost, or it had not begun.
			const isAsItWas = (JSON.parse(record) as {state?: string}).state === 'running';
			if (left.length === 0 || isAsItWas) {
				return;
			}

			if (scope.signal.aborted) {
				this.#leaked.push(...left.map(each => `${each}, of ${name}, left by the killed daemon`));
				return;
			}

			await pause(50, never);
		}
	}

	async #undefinePool(forMs: number): Promise<void> {
		this.#undefinedPools++;
		await pause(forMs, never);
		this.#undefinedPools--;
	}

	/** Daemons start with a wrong time, then with the right time. The keys that VMs trust must survive that. */
	async #turnClockBack(): Promise<void> {
		const node = this.#node;
		const before = await readFile(node.identityPath);
		for (const offsetMs of [clockOffsetMs, 0]) {
			node.settings = {clockOffsetMs: offsetMs};
			node.restart('SIGKILL');
			await this.#settled();
		}

		if (!before.equals(await readFile(node.identityPath))) {
			this.#lost.push('the identity did not survive a wrong clock');
		}
	}

	/** A second sandbox for the namespace of an existing one is refused, and its stop does not affect the first one. */
	async #intrude(first: Pod, spelling: Spelling): Promise<void> {
		const {shim} = this.#node;
		const id = newSandboxId();
		const name = `another sandbox for ${first.name}`;
		using limit = new Scope().deadline(limitsMs.create + limitsMs.stop, name);
		const tell = (answer: string): void => this.#tell(`${name} ${id.slice(0, 8)}: ${answer}`);
		const request = {
			id,
			annotations: podAnnotations(`${first.name}-alias`, 'chaos'),
			networkNamespacePath: spelled(first.path, spelling),
		};
		const answer = await this.#judged(shim.createVm(request, limit.signal), limit.signal, tell, name);
		// A failed start releases the namespace.
		const hasNamespace = first.isStarted || (first.agentSocket !== undefined && !first.isStartAsked);
		if ('value' in answer && hasNamespace && !first.isStopped && !first.isDoomed && !first.isForgotten) {
			this.#lost.push(`${first.name} got a second sandbox by ${request.networkNamespacePath}`);
		}

		// Like a shim whose CreateVM failed. Retried while no daemon answers.
		while (
			!limit.signal.aborted &&
			'error' in (await this.#judged(shim.stopVm(id, limit.signal), limit.signal, tell, `stop of ${name}`))
		) {
			await pause(50, never);
		}
	}

	/** PODS_DIR is read-only. All other state of stopped sandboxes is gone. */
	async #assertOnlyFilesLeft(): Promise<void> {
		const startedAt = performance.now();
		for (;;) {
			const left = [...(await this.#node.inventory()).difference(this.#before)].filter(
				name => !name.startsWith('file '),
			);
			const elapsedMs = Math.round(performance.now() - startedAt);
			if (left.length === 0 || elapsedMs > limitsMs.converge) {
				this.#tell(`with PODS_DIR read-only ${left.length} left after ${elapsedMs} ms`);
				this.#leaked.push(...left.map(name => `${name}, while PODS_DIR is read-only`));
				return;
			}

			await pause(50, never);
		}
	}

	/** Never rejects: an error is an answer too; only a missing answer counts as hung. */
	async #answered<T>(
		pod: Pod,
		call: 'create' | 'start' | 'stop',
		make: (signal: AbortSignal) => Promise<T>,
		name: string = call,
	): Promise<Answer<T>> {
		const startedAt = performance.now();
		const limitMs = call === 'start' ? this.#node.settings.startTimeoutMs + startAllowanceMs : limitsMs[call];
		using limit = new Scope(pod.shim.signal).deadline(limitMs, `${name} of ${pod.name}`);
		const tell = (answer: string): void =>
			this.#tell(
				`${name} of ${pod.name} ${pod.id.slice(0, 8)}: ${answer} after ${Math.round(performance.now() - startedAt)} ms`,
			);
		// A killed shim makes no calls; the container runtime makes them instead.
		if (pod.shim.signal.aborted) {
			using other = new Scope().deadline(limitMs, `${name} of ${pod.name}`);
			return await this.#judged(make(other.signal), other.signal, tell, `${name} of ${pod.name}`);
		}

		const answer = await this.#judged(
			make(limit.signal),
			limit.signal,
			tell,
			`${name} of ${pod.name}`,
			pod.shim.signal,
		);
		if ('error' in answer && !pod.isDoomed && !this.#isDisturbed() && !pod.isStopped) {
			this.#lost.push(`${name} of ${pod.name} failed, although nothing was wrong: ${answer.error.message}`);
		}

		return answer;
	}

	async #judged<T>(
		answer: Promise<T>,
		limit: AbortSignal,
		tell: (answer: string) => void,
		what: string,
		hungUp?: AbortSignal,
	): Promise<Answer<T>> {
		try {
			const value = await answer;
			tell('ok');
			return {value};
		} catch (error) {
			tell(toError(error).message);
			if (limit.aborted && hungUp?.aborted !== true) {
				this.#hung.push(`${what} got no answer`);
			}

			return {error: toError(error)};
		}
	}

	/** Whether any fault so far may have affected the daemon. */
	#isDisturbed(): boolean {
		return this.#script.faults.some(
			fault =>
				!harmless.has(fault.kind) &&
				(this.#happened.get(fault) === true || (fault.kind === 'program' && this.#happened.has(fault))),
		);
	}

	/** Calls like a shim that reconnects. */
	async #assertServed(pod: Pod): Promise<void> {
		const {agentSocket} = pod;
		if (!pod.isStarted || pod.isStopped || pod.isDoomed || pod.isForgotten || agentSocket === undefined) {
			return;
		}

		using scope = new Scope().deadline(limitsMs.check, 'the agent to answer');
		for (let attempt = 1; ; attempt++) {
			try {
				await using client = await connect(agentSocket, scope.signal);
				await new AgentClient(client).call('Health/Check', {}, scope.signal, 20_000);
				this.#tell(`${pod.name} is served, at attempt ${attempt}`);
				return;
			} catch (error) {
				if (scope.signal.aborted) {
					this.#lost.push(`${pod.name} ${pod.id.slice(0, 8)} is not served: ${toError(error).message}`);
					return;
				}

				await pause(50, scope.signal).catch(() => undefined);
			}
		}
	}

	async #settled(): Promise<void> {
		using scope = new Scope().deadline(limitsMs.settle, 'the daemon to be there again');
		try {
			await abortable(this.#node.settled(), scope.signal);
		} catch (error) {
			this.#hung.push(`no daemon: ${toError(error).message}`);
		}
	}

	/** Polls until no leftovers remain, or until the time limit. */
	async #converge(): Promise<Inventory> {
		const startedAt = performance.now();
		for (;;) {
			const now = await this.#node.inventory();
			const left = now.difference(this.#before);
			const elapsedMs = Math.round(performance.now() - startedAt);
			if (left.size === 0 || elapsedMs > limitsMs.converge) {
				this.#tell(`${left.size} left after ${elapsedMs} ms`);
				this.#leaked.push(...left);
				return now;
			}

			await pause(50, never);
		}
	}

	#tell(what: string): void {
		this.#story.push(`${String(Math.round(performance.now() - this.#startedAt)).padStart(6)} ms  ${what}`);
	}
}

/**
 * "Operation invalid" for a destroy means that the domain does not run; libvirt never returns it for a running domain.
 */
function honest(procedure: string, action: Fate['action']): Fate['action'] {
	return procedure === 'domainDestroyFlags' &&
		typeof action === 'object' &&
		action.refuse === libvirtCode.operationInvalid
		? {refuse: libvirtCode.internalError}
		: action;
}

/**
 * The claims of this node's sandboxes on their VMs, kept as PeerPod objects: each is announced before its VM exists and withdrawn when it is gone,
 * in the background if the API server is away, so that a pod waits for it a short while at most. What an earlier run of the daemon did not get to
 * withdraw is found by comparing with the VMs that there are.
 *
 * One task at a time works on a claim. Withdrawing ends an announcement that is under way, and follows it.
 */
import {AdaptorError} from '../errors.ts';
import {abortable, backOff, pause, Scope} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import {FailureLog} from '../concurrency/failure-log.ts';
import type {ClaimedVm, Cluster} from '../sandbox/ports.ts';
import type {KubernetesClient} from './client.ts';
import {isAlreadyExists, isNotFound, KubernetesError} from './errors.ts';
import type {ApiObject, ObjectName} from './objects.ts';
import {claimOf, newPeerPod, ofNode, peerPodFinalizer, peerPodName, peerPods, withoutFinalizer, type Daemon, type PeerPod} from './peer-pod.ts';
import {isSamePod, pods} from './pods.ts';

export interface PeerPodsOptions extends Daemon {
	readonly client: KubernetesClient;
	/** The instance names of all VMs of this node, half-made ones too. */
	readonly vmNames: (signal: AbortSignal) => Promise<readonly string[]>;
	/** How long a claim may make its pod wait. */
	readonly patienceMs?: number;
	/** How often to ask again for what is not there, or not allowed. */
	readonly lookAgainMs?: number;
	readonly retryMs?: readonly [first: number, longest: number];
	/** How often claims and VMs are compared. */
	readonly compareMs?: number;
	/** How old a claim without a VM must be to be taken for a left-over: older than any start, of this daemon or one before it, may take. */
	readonly leftOverMs?: number;
	readonly now?: () => number;
	readonly log: Logger;
}

interface Announcement {
	readonly end: AbortController;
	/** Nothing is done for it any more. Never rejects. */
	readonly done: Promise<void>;
	/** Waiting for it makes sense no longer. Never rejects. */
	readonly settled: Promise<void>;
}

type Task = (signal: AbortSignal) => Promise<void>;

/** What is under way when the daemon stops may take this long to finish. */
const goodbyeTimeoutMs = 2000;

export class PeerPods implements Pick<Cluster, 'claim' | 'disclaim'>, AsyncDisposable {
	readonly #options: Required<PeerPodsOptions>;
	/** Aborts when nothing is to be tried again. */
	readonly #stopping = new AbortController();
	/** Aborts when everything is to end. */
	readonly #closing = new AbortController();
	/** By instance name; those of sandboxes that exist now. */
	readonly #claimed = new Map<string, Announcement>();
	readonly #tasks = new Set<Promise<void>>();
	readonly #comparing: Promise<void>;
	/** Those who wait for the cluster to know PeerPods. */
	readonly #waiting = new Set<() => void>();
	#looking: Promise<void> | undefined;
	/** What every claim would meet. */
	readonly #refusals = new FailureLog();
	#closed: Promise<void> | undefined;

	constructor(options: PeerPodsOptions) {
		this.#options = {
			patienceMs: 2000, lookAgainMs: 60_000, retryMs: [500, 30_000], compareMs: 300_000, leftOverMs: 600_000, now: Date.now, ...options,
		};
		this.#comparing = this.#removeLeftOvers(this.#stopping.signal);
	}

	async claim(vm: ClaimedVm, signal: AbortSignal): Promise<void> {
		const {settled} = this.#claimed.get(vm.instanceName) ?? this.#beginToAnnounce(vm);
		using patience = new Scope(signal).deadline(this.#options.patienceMs, 'the Kubernetes API');
		try {
			await abortable(settled, patience.signal);
		} catch {
			signal.throwIfAborted();
			this.#options.log.warn(names(vm), 'the pod\'s VM is not announced to the cluster yet, it goes on in the background');
		}
	}

	disclaim(vm: ClaimedVm): void {
		const announcement = this.#claimed.get(vm.instanceName);
		this.#claimed.delete(vm.instanceName);
		announcement?.end.abort(new Error('withdrawn'));
		void this.#inBackground(this.#persist(vm, async signal => {
			await announcement?.done;
			await this.#withdraw(peerPodName(vm), signal);
		}));
	}

	/** What is under way gets a moment to finish; what does not is made up for by the daemon that comes next. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		await this.#closed;
	}

	async #close(): Promise<void> {
		using patience = new Scope().deadline(goodbyeTimeoutMs, 'the Kubernetes API');
		this.#stopping.abort(new Error('closing'));
		await abortable(Promise.all(this.#tasks), patience.signal).catch(() => undefined);
		this.#closing.abort(new Error('closing'));
		await Promise.all([this.#comparing, this.#looking, ...this.#tasks]);
	}

	#beginToAnnounce(vm: ClaimedVm): Announcement {
		const end = new AbortController();
		const {promise: hopeless, resolve: giveUp} = Promise.withResolvers<undefined>();
		const done = this.#inBackground(this.#persist(vm, async signal => this.#announce(vm, signal), end.signal, () => giveUp(undefined)));
		const announcement = {end, done, settled: Promise.race([done, hopeless])};
		this.#claimed.set(vm.instanceName, announcement);
		return announcement;
	}

	async #inBackground(task: Promise<void>): Promise<void> {
		this.#tasks.add(task);
		try {
			await task;
		} finally {
			this.#tasks.delete(task);
		}
	}

	/**
	 * Until it is done, is refused for good, or is ended. Never throws.
	 * @param onMissing called when that will take as long as it likes: the cluster has no PeerPods
	 */
	async #persist(vm: ClaimedVm, task: Task, end?: AbortSignal, onMissing?: () => void): Promise<void> {
		using attempts = new Scope(this.#closing.signal, ...(end === undefined ? [] : [end]));
		using pauses = new Scope(this.#stopping.signal, attempts.signal);
		const delays = backOff(...this.#options.retryMs);
		const isOver = (): boolean => pauses.signal.aborted;
		const failures = new FailureLog();
		do {
			try {
				await task(attempts.signal);
				return;
			} catch (error) {
				if (isOver()) {
					return;
				}

				if (error instanceof KubernetesError && error.isKindMissing) {
					this.#tellOnce('missing', error, 'there are no PeerPods in this cluster: nobody will clean up after a node that is lost');
					onMissing?.();
					await this.#kindToAppear(pauses.signal).catch(() => undefined);
				} else if (isForGood(error)) {
					this.#tellOnce(String(error instanceof KubernetesError ? error.status : error), error, 'PeerPods cannot be kept');
					return;
				} else {
					this.#options.log[failures.failed() ? 'warn' : 'debug']({...names(vm), err: error}, 'PeerPod not up to date yet, it is tried again');
					await pause(delays.next().value, pauses.signal).catch(() => undefined);
				}
			}
		} while (!isOver());
	}

	async #announce(vm: ClaimedVm, signal: AbortSignal): Promise<void> {
		const {client, log} = this.#options;
		const podUid = await this.#podUid(vm, signal);
		if (podUid === undefined) {
			log.info({...names(vm)}, 'the pod is gone from the cluster: its VM is not announced');
			return;
		}

		try {
			await client.create(peerPods, vm.pod.namespace, newPeerPod(vm, podUid, this.#options), signal);
			log.debug({...names(vm)}, 'PeerPod made');
		} catch (error) {
			// Of an earlier run of the daemon, or of an attempt that got no answer: the name is the sandbox's alone.
			if (!isAlreadyExists(error)) {
				throw error;
			}
		}
	}

	/** As the API server has it, which is what its garbage collector goes by. Undefined when the pod is gone, or another one of its name is there. */
	async #podUid({pod}: ClaimedVm, signal: AbortSignal): Promise<string | undefined> {
		try {
			const {metadata} = await this.#options.client.get(pods, {name: pod.name, namespace: pod.namespace}, signal);
			return isSamePod(pod, metadata) ? metadata.uid : undefined;
		} catch (error) {
			if (isNotFound(error)) {
				return undefined;
			}

			if (pod.uid !== undefined && error instanceof KubernetesError && error.status === 403) {
				return pod.uid;
			}

			throw error;
		}
	}

	/** First the finalizer, then the object: whoever sees it being deleted with its finalizer would delete the VM once more. */
	async #withdraw(name: ObjectName, signal: AbortSignal): Promise<void> {
		const {client, log} = this.#options;
		try {
			const {metadata} = await this.#withoutFinalizer(name, signal);
			if (metadata.deletionTimestamp === undefined) {
				await client.delete(peerPods, name, {uid: metadata.uid}, signal).catch((error: unknown) => {
					// One that may not be deleted goes with its pod, now that its finalizer is gone.
					if (!(error instanceof KubernetesError && error.status === 403)) {
						throw error;
					}
				});
			}

			log.debug({instanceName: name.name}, 'PeerPod withdrawn');
		} catch (error) {
			if (!isNotFound(error)) {
				throw error;
			}
		}
	}

	/** As this daemon made it, the finalizer is the first, and that needs no permission to read. */
	async #withoutFinalizer(name: ObjectName, signal: AbortSignal): Promise<ApiObject<PeerPod>> {
		const {client} = this.#options;
		try {
			return await client.patch(peerPods, name, {json: withoutFinalizer([peerPodFinalizer])}, signal);
		} catch (error) {
			if (!(error instanceof KubernetesError && error.status === 422)) {
				throw error;
			}
		}

		const peerPod = await client.get(peerPods, name, signal);
		const patch = withoutFinalizer(peerPod.metadata.finalizers);
		return patch.length === 0 ? peerPod : client.patch(peerPods, name, {json: patch}, signal);
	}

	/** One asks for all who wait. Each has a promise of its own: one that may never settle would keep something of everybody who ever waited for it. */
	async #kindToAppear(signal: AbortSignal): Promise<void> {
		const {promise, resolve} = Promise.withResolvers<undefined>();
		const wake = (): void => resolve(undefined);
		this.#waiting.add(wake);
		this.#looking ??= this.#lookForKind(this.#stopping.signal).catch(() => undefined);
		try {
			await abortable(promise, signal);
		} finally {
			this.#waiting.delete(wake);
		}
	}

	async #lookForKind(signal: AbortSignal): Promise<void> {
		const {client, lookAgainMs, log} = this.#options;
		for (;;) {
			await pause(lookAgainMs, signal);
			try {
				await client.list(peerPods, {namespace: 'default'}, signal);
			} catch (error) {
				if (signal.aborted || (error instanceof KubernetesError && error.isKindMissing)) {
					continue;
				}
			}

			if (this.#refusals.recovered('missing')) {
				log.info({}, 'the cluster knows PeerPods now');
			}

			this.#looking = undefined;
			for (const wake of this.#waiting) {
				wake();
			}

			return;
		}
	}

	/** Now and then, and never of what may be on its way: a claim is older than its VM. */
	async #removeLeftOvers(signal: AbortSignal): Promise<void> {
		const {client, node, cluster, vmNames, compareMs, leftOverMs, now, log} = this.#options;
		const isClosing = (): boolean => signal.aborted;
		while (!isClosing()) {
			try {
				const {items} = await client.list(peerPods, {labelSelector: ofNode(node)}, signal);
				const suspects = items.filter(item => {
					const claim = claimOf(item);
					return claim?.node === node && claim.cluster === cluster && !this.#claimed.has(claim.instanceName)
						&& Date.parse(item.metadata.creationTimestamp ?? '') < now() - leftOverMs;
				});
				const vms = suspects.length === 0 ? [] : await vmNames(signal);
				for (const suspect of suspects) {
					if (!vms.includes(String(suspect.instanceId)) && !this.#claimed.has(String(suspect.instanceId))) {
						log.info({instanceName: suspect.metadata.name, pod: `${String(suspect.metadata.namespace)}/${String(suspect.metadata.ownerReferences[0]?.name)}`}, 'PeerPod of a VM that is gone withdrawn');
						await this.#withdraw(suspect.metadata, signal);
					}
				}
			} catch (error) {
				if (!isClosing() && !(error instanceof KubernetesError && error.isKindMissing)) {
					log.debug({err: error}, 'PeerPods and VMs could not be compared');
				}
			}

			await pause(compareMs, signal).catch(() => undefined);
		}
	}

	#tellOnce(refusal: string, error: unknown, message: string): void {
		if (this.#refusals.failed(refusal)) {
			this.#options.log.warn({err: error}, message);
		}
	}
}

function names({sandboxId, instanceName, pod}: ClaimedVm): {sandboxId: string; instanceName: string; pod: string} {
	return {sandboxId, instanceName, pod: `${pod.namespace}/${pod.name}`};
}

/** A refusal that will be the same the next time. */
function isForGood(error: unknown): boolean {
	if (!(error instanceof KubernetesError)) {
		return error instanceof AdaptorError && error.code === 'invalid-argument';
	}

	return [400, 403, 405, 415].includes(error.status ?? 0);
}

/**
 * The PeerPod objects of this node: one per VM, created before the VM and withdrawn when the VM is gone.
 *
 * In the happy case, `registerVm` creates the PeerPod at once, `unregisterVm` withdraws it at once, and `reconcile`
 * finds nothing to do. Rounds handle everything else, one at a time: failures, refusals, and unknown PeerPods, such as
 * those of a killed daemon. A round compares the VMs of the last `reconcile` call with the PeerPods at the API server,
 * then works on every wanted state that is not reached yet. A failed round is retried with growing pauses of at most
 * half a minute. So PeerPods are correct within a minute after an outage.
 *
 * One task at a time works on a PeerPod. A new wish for it replaces the earlier one and ends its attempt.
 */
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {KeyedMutex} from '../core/concurrency/keyed-mutex.ts';
import {retry} from '../core/concurrency/retry.ts';
import {Trigger} from '../core/concurrency/every.ts';
import {abortable, Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import type {RegisteredVm, Cluster} from '../sandbox/ports.ts';
import type {KubernetesClient} from './client.ts';
import {isAlreadyExists, isKindMissing, isNotFound, isRefusal, KubernetesError, retryAfterOf} from './errors.ts';
import type {ApiObject, ObjectName} from './objects.ts';
import {
	registrationOf,
	newPeerPod,
	ofNode,
	ownerOf,
	peerPodFinalizer,
	peerPodName,
	peerPods,
	withoutFinalizer,
	type Daemon,
	type PeerPod,
} from './peer-pod.ts';
import {isMirror, isSamePod, pods} from './pods.ts';

export interface PeerPodsOptions extends Daemon {
	readonly client: KubernetesClient;
	/** The instance names of all VMs of this node, including incomplete ones. */
	readonly vmNames: (signal: AbortSignal) => Promise<readonly string[]>;
	/** How long a registration may delay its pod. */
	readonly patienceMs?: number;
	/** Pauses after a failed round. */
	readonly retryMs?: readonly [first: number, longest: number];
	/**
	 * Minimum age of a PeerPod without a VM before it is withdrawn: longer than any start of this daemon or another one
	 * of its node.
	 */
	readonly leftOverMs?: number;
	readonly now?: () => number;
	readonly log: Logger;
}

/** The wanted state of one PeerPod. */
interface Wish {
	readonly name: ObjectName;
	/** The VM to register; without one, the PeerPod is withdrawn. */
	readonly vm?: RegisteredVm;
	/** Aborts when the wanted state is replaced or dropped. */
	readonly end: AbortController;
	/** Resolves when it is fulfilled, refused or replaced. */
	readonly answered: PromiseWithResolvers<undefined>;
	isFulfilled: boolean;
}

/** Time limit at shutdown for work in progress. */
const closeTimeoutMs = 2000;
/** Limits the wait for an unreachable KVM host, because the rest of a round only needs the cluster. */
const vmNamesTimeoutMs = 10_000;

export class PeerPods implements Pick<Cluster, 'registerVm' | 'unregisterVm' | 'reconcile'>, AsyncDisposable {
	readonly #options: Required<PeerPodsOptions>;
	/** Aborts when retries end. */
	readonly #stopping = new AbortController();
	/** Aborts when all work ends. */
	readonly #closing = new AbortController();
	/** By key of the PeerPod. A withdrawn PeerPod has none. */
	readonly #wishes = new Map<string, Wish>();
	/**
	 * By key of the PeerPod: the VMs of the last `reconcile`, without those that were withdrawn since; undefined before
	 * the first call.
	 */
	#wanted: Map<string, RegisteredVm> | undefined;
	/** Whether these VMs still have to be compared with the existing PeerPods. */
	#isComparisonDue = false;
	/** By key of the PeerPod: known UIDs of the pods that own PeerPods. */
	readonly #owners = new Map<string, string>();
	readonly #mutex = new KeyedMutex();
	readonly #attempts = new Set<Promise<void>>();
	/** Requests a round. */
	readonly #work = new Trigger();
	/** Whether an attempt outside of a round has failed and its pause has not passed yet. */
	#failure: {readonly error: unknown} | undefined;
	readonly #failures = new FailureLog();
	/** By key of the PeerPod: VMs of pods that no longer exist. */
	readonly #withoutPod = new FailureLog();
	readonly #rounds: Promise<void>;
	#closed: Promise<void> | undefined;

	constructor(options: PeerPodsOptions) {
		this.#options = {patienceMs: 2000, retryMs: [500, 30_000], leftOverMs: 600_000, now: Date.now, ...options};
		this.#rounds = this.#runRounds(this.#stopping.signal);
	}

	async registerVm(vm: RegisteredVm, signal: AbortSignal): Promise<void> {
		const known = this.#wishes.get(keyOf(peerPodName(vm)));
		const wish = known?.vm === undefined ? this.#wish(peerPodName(vm), vm) : known;
		if (wish !== known) {
			this.#tryAtOnce(wish);
		}

		using patience = new Scope(signal).deadline(this.#options.patienceMs, 'the Kubernetes API');
		try {
			await abortable(wish.answered.promise, patience.signal);
		} catch {
			signal.throwIfAborted();
			this.#options.log.warn(
				names(vm),
				'the VM is not registered with the cluster yet; continuing in the background',
			);
		}
	}

	unregisterVm(vm: RegisteredVm): void {
		const name = peerPodName(vm);
		this.#wanted?.delete(keyOf(name));
		const known = this.#wishes.get(keyOf(name));
		if (known === undefined || known.vm !== undefined) {
			this.#tryAtOnce(this.#wish(name));
		}
	}

	/** See `Cluster`. A registration that is not in the set yet belongs to a running start, and stays. */
	reconcile(vms: readonly RegisteredVm[]): void {
		const wanted = new Map(vms.map(vm => [keyOf(peerPodName(vm)), vm]));
		for (const key of this.#wanted?.keys() ?? []) {
			if (!wanted.has(key) && this.#wishes.get(key)?.vm !== undefined) {
				this.#forget(key); // Its PeerPod, if there is one, is withdrawn by the comparison, with caution.
			}
		}

		for (const [key, vm] of wanted) {
			if (this.#wishes.get(key)?.vm === undefined) {
				this.#wish(peerPodName(vm), vm);
			}
		}

		this.#wanted = wanted;
		this.#isComparisonDue = true;
		this.#work.fire();
	}

	/**
	 * The UID of the pod that owns the PeerPod of a VM; undefined if there is none, or it may not be read. Only asks
	 * the API server if it is unknown.
	 */
	async ownerUid(vm: RegisteredVm, signal: AbortSignal): Promise<string | undefined> {
		const key = keyOf(peerPodName(vm));
		const known = this.#owners.get(key);
		if (known !== undefined) {
			return known;
		}

		try {
			const uid = ownerOf((await this.#options.client.get(peerPods, peerPodName(vm), signal)).metadata)?.uid;
			if (uid !== undefined) {
				this.#owners.set(key, uid);
			}

			return uid;
		} catch (error) {
			if (isRefusal(error)) {
				return undefined;
			}

			throw error;
		}
	}

	/** Waits a moment for work in progress; the next daemon does the rest. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		await this.#closed;
	}

	async #close(): Promise<void> {
		using patience = new Scope().deadline(closeTimeoutMs, 'the Kubernetes API');
		this.#stopping.abort(new Error('closing'));
		await abortable(Promise.all(this.#attempts), patience.signal).catch(() => undefined);
		this.#closing.abort(new Error('closing'));
		await Promise.all([this.#rounds, ...this.#attempts]);
	}

	/** Replaces the current wish. */
	#wish(name: ObjectName, vm?: RegisteredVm): Wish {
		const key = keyOf(name);
		this.#forget(key);
		const wish = {
			name,
			...present({vm}),
			end: new AbortController(),
			answered: Promise.withResolvers<undefined>(),
			isFulfilled: false,
		};
		this.#wishes.set(key, wish);
		return wish;
	}

	#forget(key: string): void {
		const wish = this.#wishes.get(key);
		this.#wishes.delete(key);
		this.#owners.delete(key);
		this.#withoutPod.recovered(key);
		wish?.end.abort(new Error('replaced'));
		wish?.answered.resolve(undefined);
	}

	#isReplaced({name, end}: Wish): boolean {
		return end.signal.aborted || this.#wishes.get(keyOf(name))?.end !== end;
	}

	#tryAtOnce(wish: Wish): void {
		const attempt = this.#attempt(wish);
		this.#attempts.add(attempt);
		void attempt.finally(() => this.#attempts.delete(attempt));
	}

	/** Never rejects: a round retries failures. */
	async #attempt(wish: Wish): Promise<void> {
		try {
			await this.#fulfil(wish);
		} catch (error) {
			if (!this.#closing.signal.aborted && !this.#isReplaced(wish)) {
				this.#failed(wish, error);
				this.#failure = {error};
				this.#work.fire();
			}
		}
	}

	async #fulfil(wish: Wish): Promise<void> {
		const {name, vm, end, answered} = wish;
		using scope = new Scope(this.#closing.signal, end.signal);
		await this.#mutex.run(
			keyOf(name),
			async () => {
				if (wish.isFulfilled || this.#isReplaced(wish)) {
					return;
				}

				await (vm === undefined ? this.#withdraw(name, scope.signal) : this.#announce(vm, scope.signal));
				wish.isFulfilled = true;
				answered.resolve(undefined);
				if (vm === undefined && !this.#isReplaced(wish)) {
					this.#forget(keyOf(name));
				}
			},
			scope.signal,
		);
	}

	#failed(wish: Wish, error: unknown): void {
		this.#tell(error);
		if (isRefusal(error)) {
			wish.answered.resolve(undefined);
		}
	}

	async #runRounds(signal: AbortSignal): Promise<void> {
		const {retryMs, log} = this.#options;
		try {
			for (;;) {
				await this.#work.wait(signal);
				await retry(
					async attempt => this.#round(attempt === 1, signal),
					{
						backOff: retryMs,
						leastPauseMs: retryAfterOf,
						onFailure: (error, {retryInMs}) => this.#tell(error, retryInMs),
					},
					signal,
				);
				if (this.#failures.recovered()) {
					log.info({}, 'PeerPods are up to date again');
				}
			}
		} catch {
			// The daemon stops.
		}
	}

	/**
	 * @throws the first failure, after everything else has been tried
	 * @param isFirst no pause follows a failed attempt outside of rounds yet
	 */
	async #round(isFirst: boolean, signal: AbortSignal): Promise<void> {
		const failure = this.#failure;
		this.#failure = undefined;
		if (isFirst && failure !== undefined) {
			throw failure.error;
		}

		const failures: unknown[] = [];
		const collect = (error: unknown): void => {
			signal.throwIfAborted();
			if (error instanceof KubernetesError && (!isRefusal(error) || isKindMissing(error))) {
				throw error; // The other PeerPods would fail for the same reason.
			}

			failures.push(error);
		};

		if (this.#isComparisonDue) {
			try {
				await this.#compare();
			} catch (error) {
				collect(error);
			}
		}

		for (const wish of this.#wishes.values()) {
			if (wish.isFulfilled) {
				continue;
			}

			try {
				await this.#fulfil(wish);
			} catch (error) {
				if (!this.#isReplaced(wish)) {
					this.#failed(wish, error);
					collect(error);
				}
			}

			signal.throwIfAborted();
		}

		if (failures.length > 0) {
			throw failures[0];
		}
	}

	/** Finds wishes that are already fulfilled or outdated, and PeerPods without a wish. */
	async #compare(): Promise<void> {
		const {client, node} = this.#options;
		const fulfilled = [...this.#wishes.values()].filter(({vm, isFulfilled}) => vm !== undefined && isFulfilled);
		this.#isComparisonDue = false; // A set that arrives from now on requires a new comparison.
		try {
			const {items} = await client.list(peerPods, {labelSelector: ofNode(node)}, this.#closing.signal);
			const listed = new Map(items.map(item => [keyOf(item.metadata), item]));
			for (const wish of fulfilled) {
				wish.isFulfilled = listed.has(keyOf(wish.name));
			}

			for (const [key, {metadata}] of listed) {
				const wish = this.#wishes.get(key);
				const owner = ownerOf(metadata);
				if (wish?.vm !== undefined) {
					wish.isFulfilled = true;
					wish.answered.resolve(undefined);
					if (owner !== undefined) {
						this.#owners.set(key, owner.uid);
					}
				}
			}

			await this.#findLeftOvers(items);
		} catch (error) {
			this.#isComparisonDue = true;
			throw error;
		}
	}

	/**
	 * Never withdraws a recent one: a PeerPod is older than its VM, and another daemon of this node may be creating
	 * one.
	 */
	async #findLeftOvers(items: ReadonlyArray<ApiObject<PeerPod>>): Promise<void> {
		const {node, cluster, vmNames, leftOverMs, now, log} = this.#options;
		const isWished = (item: ApiObject<PeerPod>): boolean => this.#wishes.has(keyOf(item.metadata));
		const suspects = items.filter(item => {
			const registration = registrationOf(item);
			return (
				registration?.node === node &&
				registration.cluster === cluster &&
				!isWished(item) &&
				Date.parse(item.metadata.creationTimestamp ?? '') <= now() - leftOverMs
			);
		});
		using scope = new Scope(this.#closing.signal).deadline(vmNamesTimeoutMs, 'the names of the VMs');
		const vms = suspects.length === 0 ? [] : await vmNames(scope.signal);
		for (const suspect of suspects) {
			const {metadata, instanceId} = suspect;
			if (!vms.includes(String(instanceId)) && !isWished(suspect)) {
				log.info(
					{
						instanceName: metadata.name,
						pod: `${String(metadata.namespace)}/${String(ownerOf(metadata)?.name)}`,
					},
					'deleted the PeerPod of a VM that is gone',
				);
				this.#wish({name: metadata.name, namespace: String(metadata.namespace)});
			}
		}
	}

	async #announce(vm: RegisteredVm, signal: AbortSignal): Promise<void> {
		const {client, log} = this.#options;
		const key = keyOf(peerPodName(vm));
		const podUid = await this.#podUid(vm, this.#owners.get(key), signal);
		if (podUid === undefined) {
			log[this.#withoutPod.failed(key) ? 'info' : 'debug'](
				names(vm),
				'the pod is gone from the cluster; its VM is not registered',
			);
			return;
		}

		try {
			await client.create(peerPods, vm.pod.namespace, newPeerPod(vm, podUid, this.#options), signal);
			this.#owners.set(key, podUid);
			log.debug(names(vm), 'PeerPod created');
		} catch (error) {
			// From an earlier run of the daemon, or from an attempt without an answer: only this sandbox has that name.
			if (!isAlreadyExists(error)) {
				throw error;
			}
		}
	}

	/**
	 * The UID in the API server, which its garbage collector uses. Undefined if the pod is gone, or another one has its
	 * name.
	 */
	async #podUid({pod}: RegisteredVm, owner: string | undefined, signal: AbortSignal): Promise<string | undefined> {
		try {
			const {metadata} = await this.#options.client.get(pods, {name: pod.name, namespace: pod.namespace}, signal);
			return isSamePod(pod.uid ?? (isMirror(metadata) ? undefined : owner), metadata) ? metadata.uid : undefined;
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

	/**
	 * First the finalizer, then the object: a controller that sees a deletion with our finalizer would delete the VM
	 * again.
	 */
	async #withdraw(name: ObjectName, signal: AbortSignal): Promise<void> {
		const {client, log} = this.#options;
		try {
			const {metadata} = await this.#withoutFinalizer(name, signal);
			if (metadata.deletionTimestamp === undefined) {
				await client.delete(peerPods, name, {uid: metadata.uid}, signal).catch((error: unknown) => {
					// If this daemon has no permission to delete the PeerPod, it is deleted together with its pod,
					// because its finalizer is gone.
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

	/** In the form of this daemon, the finalizer is the first entry, so no permission to read is needed. */
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

	#tell(error: unknown, retryInMs?: number): void {
		const [what, message] = isKindMissing(error)
			? ['missing', 'this cluster has no PeerPods; VMs of a lost node will not be deleted']
			: isRefusal(error)
				? ['refused', 'no permission to write PeerPods; retrying']
				: ['failed', 'could not update the PeerPods; retrying'];
		this.#options.log[this.#failures.failed(what) ? 'warn' : 'debug'](
			{err: error, ...present({retryInMs})},
			message,
		);
	}
}

function keyOf({namespace, name}: ObjectName): string {
	return `${String(namespace)}/${name}`;
}

function names({sandboxId, instanceName, pod}: RegisteredVm): {sandboxId: string; instanceName: string; pod: string} {
	return {sandboxId, instanceName, pod: `${pod.namespace}/${pod.name}`};
}

/**
 * Advertises the number of pod VMs of this node to the scheduler, as the extended resource `kata.peerpods.io/vm`. If
 * the resource is removed, it is restored: a restarting kubelet sets it to 0, and a daemon of another version removes
 * it when it stops. It is only removed with the DaemonSet. Knows nothing about sandboxes.
 *
 * During an update, two daemons run, possibly with different limits. If they know the UIDs of their pods, a daemon that
 * sees another owner only restores the resource when it stays removed. Otherwise each restores it with growing pauses.
 * Source: cloud-api-adaptor, pkg/adaptor/k8sops/node.go; Kubernetes, "Advertise Extended Resources for a Node" (the
 * kubelet derives `allocatable`).
 */
import {Trigger} from '../core/concurrency/every.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {retry} from '../core/concurrency/retry.ts';
import {backOff, pause, Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {KubernetesClient} from './client.ts';
import {isNotFound, retryAfterOf} from './errors.ts';
import {textAt, textsAt} from '../core/json.ts';
import type {Kind, ObjectMeta} from './objects.ts';
import {followLimit} from './peer-pod-config.ts';

/** The resource that the webhook adds to each pod of the runtime class. */
export const extendedResource = 'kata.peerpods.io/vm';
/**
 * Who advertised it last: the UID of a daemon's pod. Daemons of upstream remove the resource when they stop, unless
 * this annotation names another pod.
 */
export const ownerAnnotation = 'kata.peerpods.io/caa-owner';

interface Node {
	readonly capacity: Readonly<Record<string, string>>;
}

const nodes: Kind<Node> = {
	apiVersion: 'v1',
	kind: 'Node',
	plural: 'nodes',
	isNamespaced: false,
	read: raw => ({capacity: textsAt(raw, 'status', 'capacity')}),
};

const daemonSets: Kind<object> = {
	apiVersion: 'apps/v1',
	kind: 'DaemonSet',
	plural: 'daemonsets',
	isNamespaced: true,
	read: () => ({}),
};

export interface NodeCapacityOptions {
	readonly client: KubernetesClient;
	/** NODE_NAME */
	readonly node: string;
	/** Namespace of the daemon. */
	readonly namespace: string;
	/** DaemonSet of the daemon: the resource is removed with it. */
	readonly daemonSet: string;
	/** PEERPODS_LIMIT_PER_NODE, not negative; undefined if it is not set. */
	readonly configured: number | undefined;
	/** POD_UID; the DaemonSet of the operator does not set it. */
	readonly podUid?: string;
	/** Aborts when the daemon gets SIGTERM: from then on its successor decides. */
	readonly stopping?: AbortSignal;
	/**
	 * Interval of checks after another daemon took over, and interval of checks of a DaemonSet that cannot be watched.
	 */
	readonly lookAgainMs?: number;
	/** Pauses after failed patches, and before changes of others are corrected. */
	readonly retryMs?: readonly [first: number, longest: number];
	/**
	 * If nobody changed the resource for this time, a change by another daemon is corrected at once; more frequent
	 * changes are corrected with growing pauses.
	 */
	readonly calmMs?: number;
	/** Time limit of the work at shutdown. */
	readonly withdrawTimeoutMs?: number;
	readonly log: Logger;
}

const defaultLimit = 10;

export class NodeCapacity implements AsyncDisposable {
	readonly #options: Required<Omit<NodeCapacityOptions, 'configured' | 'podUid' | 'stopping'>> &
		Pick<NodeCapacityOptions, 'configured' | 'podUid'>;
	readonly #closing: Scope;
	readonly #background: ReadonlyArray<Promise<void>>;
	/** Requests a check of the node. */
	readonly #doubt = new Trigger();
	/** The node as last reported by the API server. */
	#seen: {readonly capacity: string | undefined; readonly owner: string | undefined} | undefined;
	#ofPeerPodConfig: number | undefined;
	/** Whether PeerPodConfig has answered: before that, nothing is advertised that might have to be taken back. */
	#isLimitKnown = false;
	/** The state and the limit at the last patch. */
	#patched: {readonly seen: object | undefined; readonly limit: number} | undefined;
	#patchedAt = -Infinity;
	/** Pauses before the next change of others is corrected. */
	#concessions: ReturnType<typeof backOff>;
	/** Set while a change of others is not corrected yet. */
	#givingWay: Scope | undefined;
	#wasOwner = false;
	/** The value that was logged last. */
	#advertised: number | undefined;
	#hadDaemonSet = false;
	#closed: Promise<void> | undefined;

	/** Starts at once, in the background; nothing waits for the API server. */
	constructor({stopping, ...options}: NodeCapacityOptions) {
		this.#closing = new Scope(...(stopping === undefined ? [] : [stopping]));
		this.#options = {
			lookAgainMs: 60_000,
			retryMs: [500, 30_000],
			calmMs: 60_000,
			withdrawTimeoutMs: 3000,
			...options,
		};
		this.#concessions = backOff(...this.#options.retryMs);
		const {signal} = this.#closing;
		this.#background = [
			this.#watchNode(signal),
			this.#keepAdvertised(signal),
			this.#lookForDaemonSet(signal),
			followLimit(
				this.#options,
				limit => {
					const before = this.#wanted;
					this.#ofPeerPodConfig = limit;
					this.#isLimitKnown = true;
					if (this.#wanted !== before) {
						this.#givingWay?.abort(new Error('a new limit'));
					}

					this.#doubt.fire();
				},
				signal,
			),
		];
	}

	/** The limit: that of PeerPodConfig, else PEERPODS_LIMIT_PER_NODE; undefined without both. */
	get limit(): number | undefined {
		return this.#ofPeerPodConfig ?? this.#options.configured;
	}

	get #wanted(): number {
		return this.limit ?? defaultLimit;
	}

	/**
	 * Leaves the resource for the next daemon. If there will be no next daemon, removes it, provided that the API
	 * server can be reached.
	 */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed ??= this.#close();
		await this.#closed;
	}

	async #close(): Promise<void> {
		this.#closing.abort(new Error('closing'));
		await Promise.all(this.#background);
		using scope = new Scope().deadline(this.#options.withdrawTimeoutMs, 'the Kubernetes API');
		try {
			if (this.#hadDaemonSet && (await this.#isUninstalled(scope.signal))) {
				await this.#remove(scope.signal);
			}
		} catch (error) {
			this.#options.log.warn(
				{err: error, node: this.#options.node},
				'could not determine whether the DaemonSet still exists; keeping the capacity of the node',
			);
		}
	}

	async #watchNode(signal: AbortSignal): Promise<void> {
		const {client, node, log} = this.#options;
		const refusals = new FailureLog();
		const absence = new FailureLog();
		for await (const event of client.watch(nodes, {fieldSelector: `metadata.name=${node}`}, signal)) {
			if (event.type === 'refused') {
				// The permissions of upstream allow patches of the status of the node, but no reads. So the patch is
				// repeated.
				if (refusals.failed()) {
					log.warn(
						{err: event.error, node},
						'no permission to watch the node; advertising its capacity periodically',
					);
				}

				this.#seen = {capacity: undefined, owner: undefined};
				this.#doubt.fire();
				continue;
			}

			if (event.type !== 'all') {
				refusals.recovered(); // Not earlier: permission to list does not include permission to watch.
			}

			const object =
				event.type === 'all' ? event.objects[0] : event.type === 'changed' ? event.object : undefined;
			this.#seen = object && seen(object);
			if (this.#seen !== undefined) {
				absence.recovered();
				this.#doubt.fire();
			} else if (event.type === 'all' && absence.failed()) {
				log.warn({node}, 'the node in NODE_NAME does not exist; its capacity is not advertised');
			}
		}
	}

	async #keepAdvertised(signal: AbortSignal): Promise<void> {
		const {node, retryMs, log} = this.#options;
		const failures = new FailureLog();
		try {
			for (;;) {
				await this.#doubt.wait(signal);
				await retry(
					async () => this.#mend(signal),
					{
						backOff: retryMs,
						leastPauseMs: retryAfterOf,
						onFailure: (error, {retryInMs}) => {
							log[failures.failed() ? 'warn' : 'debug'](
								{err: error, node, retryInMs},
								'could not advertise the capacity of the node; retrying',
							);
							this.#advertised = undefined; // So that the log also shows when the problem ends.
						},
					},
					signal,
				);
				failures.recovered();
			}
		} catch (error) {
			if (!signal.aborted) {
				throw error;
			}
		}
	}

	/** Patches the node if it differs. Repeated changes of others are corrected more and more slowly. */
	async #mend(signal: AbortSignal): Promise<void> {
		const {retryMs, calmMs, lookAgainMs} = this.#options;
		const isCalm = performance.now() - this.#patchedAt >= calmMs;
		if (this.#isSuperseded() && this.#isWrong()) {
			await pause(lookAgainMs, signal);
		} else if (isCalm) {
			this.#concessions = backOff(...retryMs);
		} else if (this.#isWrong() && this.#patched?.limit === this.#wanted) {
			await this.#giveWay(this.#concessions.next().value, signal);
		}

		if (this.#isWrong()) {
			await this.#advertise(signal);
			this.#patchedAt = performance.now();
		}
	}

	/** Waits after changes of others. A new limit of this daemon is set at once. */
	async #giveWay(ms: number, signal: AbortSignal): Promise<void> {
		using scope = new Scope(signal);
		this.#givingWay = scope;
		await pause(ms, scope.signal).catch(() => signal.throwIfAborted());
		this.#givingWay = undefined;
	}

	/** Another daemon has taken over from this one. */
	#isSuperseded(): boolean {
		const {podUid} = this.#options;
		return podUid !== undefined && this.#wasOwner && this.#seen?.owner !== undefined && this.#seen.owner !== podUid;
	}

	#isWrong(): boolean {
		const wanted = this.#wanted;
		// The limit is not known, the node does not exist, or the last patch is not visible yet.
		if (
			!this.#isLimitKnown ||
			this.#seen === undefined ||
			(this.#patched?.seen === this.#seen && this.#patched.limit === wanted)
		) {
			return false;
		}

		const {capacity, owner} = this.#seen;
		const {podUid} = this.#options;
		const advertised = capacity === undefined ? undefined : wholeQuantity(capacity);
		return this.#isSuperseded()
			? advertised !== wanted && (advertised === undefined || advertised === 0)
			: advertised !== wanted || (podUid !== undefined && owner !== podUid);
	}

	async #advertise(signal: AbortSignal): Promise<void> {
		const {client, node, podUid, log} = this.#options;
		const limit = this.#wanted;
		const before = this.#seen;
		const isOwner = podUid !== undefined && !this.#isSuperseded();
		// The status subresource accepts metadata too, like the kubelet uses it. The watch shows the result: the answer
		// may be older than what the watch has reported.
		await client.patch(
			nodes,
			{name: node},
			{
				merge: {
					...(isOwner ? {metadata: {annotations: {[ownerAnnotation]: podUid}}} : {}),
					status: {capacity: {[extendedResource]: String(limit)}},
				},
			},
			signal,
			'status',
		);
		this.#patched = {seen: before, limit};
		this.#wasOwner ||= isOwner;
		if (this.#advertised !== limit) {
			this.#advertised = limit;
			log.info({node, count: limit}, 'capacity of the node advertised');
		} else {
			log.debug({node, count: limit}, 'capacity of the node advertised again');
		}
	}

	/** Only a DaemonSet that was seen before counts as deleted: if DAEMONSET_NAME is wrong, it never existed. */
	async #lookForDaemonSet(signal: AbortSignal): Promise<void> {
		const {client, namespace, daemonSet, lookAgainMs} = this.#options;
		try {
			await retry(
				async () => client.get(daemonSets, {name: daemonSet, namespace}, signal),
				{backOff: [lookAgainMs, lookAgainMs], leastPauseMs: retryAfterOf},
				signal,
			);
			this.#hadDaemonSet = true;
		} catch {
			// The daemon stops.
		}
	}

	async #isUninstalled(signal: AbortSignal): Promise<boolean> {
		const {client, namespace, daemonSet} = this.#options;
		try {
			return (
				(await client.get(daemonSets, {name: daemonSet, namespace}, signal)).metadata.deletionTimestamp !==
				undefined
			);
		} catch (error) {
			if (isNotFound(error)) {
				return true;
			}

			throw error;
		}
	}

	async #remove(signal: AbortSignal): Promise<void> {
		const {client, node, podUid, log} = this.#options;
		const {metadata} = await client.get(nodes, {name: node}, signal);
		const owner = metadata.annotations[ownerAnnotation];
		if (podUid !== undefined && owner !== undefined && owner !== podUid) {
			return; // A daemon of another DaemonSet has taken over.
		}

		await client.patch(
			nodes,
			{name: node},
			{
				merge: {
					metadata: {annotations: {[ownerAnnotation]: null}},
					status: {capacity: {[extendedResource]: null}},
				},
			},
			signal,
			'status',
		);
		log.info({node, reason: `DaemonSet ${this.#options.daemonSet} is gone`}, 'capacity of the node withdrawn');
	}
}

function seen({capacity, metadata}: Node & {readonly metadata: ObjectMeta}): {
	capacity: string | undefined;
	owner: string | undefined;
} {
	return {capacity: textAt(capacity, extendedResource), owner: textAt(metadata.annotations, ownerAnnotation)};
}

/**
 * A count in the form of Kubernetes: thousands get a suffix (Kubernetes, "Quantity"). Undefined if it is not such a
 * whole number.
 */
export function wholeQuantity(text: string): number | undefined {
	const [, digits, suffix = ''] = /^(\d{1,9})([kMG]?)$/v.exec(text) ?? [];
	return digits === undefined ? undefined : Number(digits) * ({k: 1e3, M: 1e6, G: 1e9}[suffix] ?? 1);
}

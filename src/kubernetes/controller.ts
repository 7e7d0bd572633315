/**
 * Cleans up after lost nodes: deletes the VM of an abandoned PeerPod (see abandonment.ts), then removes its finalizer.
 * Each round reads everything again, so no event can be missed; nodes are only read if there is something to decide. A
 * function in the options deletes the VM. It can run together with the upstream controller: both may remove the
 * finalizer.
 */
import {every} from '../core/concurrency/every.ts';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {retry} from '../core/concurrency/retry.ts';
import type {Logger} from '../core/log.ts';
import {decideOnVm, type AbandonmentPolicy, type NodeView} from './abandonment.ts';
import type {KubernetesClient} from './client.ts';
import {isKindMissing, isNotFound, retryAfterOf} from './errors.ts';
import {listAt, textAt} from '../core/json.ts';
import {present} from '../core/present.ts';
import type {ApiObject, Kind} from './objects.ts';
import {registrationOf, peerPods, withoutFinalizer, type VmRegistration, type PeerPod} from './peer-pod.ts';
import {pods, wholePods} from './pods.ts';

interface WithReadiness {
	readonly isReady: boolean;
}

const isReady = (raw: unknown): boolean =>
	listAt(raw, 'status', 'conditions').some(
		condition => textAt(condition, 'type') === 'Ready' && textAt(condition, 'status') === 'True',
	);
const nodes: Kind<WithReadiness> = {
	apiVersion: 'v1',
	kind: 'Node',
	plural: 'nodes',
	isNamespaced: false,
	read: raw => ({isReady: isReady(raw)}),
};
const daemonPods: Kind<WithReadiness & {readonly node: string | undefined}> = {
	...wholePods,
	read: raw => ({isReady: isReady(raw), node: textAt(raw, 'spec', 'nodeName')}),
};

export interface ControllerOptions extends AbandonmentPolicy {
	readonly client: KubernetesClient;
	/** Of the daemons. */
	readonly namespace: string;
	/** Labels of daemon pods, e.g. `name=osc-caa-ds`. */
	readonly daemonSelector: string;
	readonly intervalMs?: number;
	/** A monotonic clock. */
	readonly now?: () => number;
	/**
	 * Deletes the VM of a registration, if it is certainly that VM.
	 * @returns whether there was one
	 */
	readonly deleteVm: (registration: VmRegistration, signal: AbortSignal) => Promise<boolean>;
	readonly log: Logger;
}

type Candidate = ApiObject<PeerPod> & {readonly registration: VmRegistration};

/** Works until the signal aborts. Never throws. */
export async function cleanUpAfterNodes(options: ControllerOptions, signal: AbortSignal): Promise<void> {
	const {intervalMs = 15_000, log} = options;
	const cleaner = new Cleaner(options);
	const failures = new FailureLog();
	for await (const _ of every(intervalMs, signal)) {
		try {
			await retry(
				async () => cleaner.round(signal),
				{
					// Longest pause: at most a minute, because it delays the recovery after an outage.
					backOff: [intervalMs, 4 * intervalMs],
					leastPauseMs: retryAfterOf,
					onFailure(error, {retryInMs}) {
						log[failures.failed() ? 'warn' : 'debug'](
							{err: error, retryInMs},
							isKindMissing(error)
								? 'this cluster has no PeerPods; nothing to do'
								: 'could not list the PeerPods; retrying',
						);
					},
				},
				signal,
			);
			failures.recovered();
		} catch {
			return; // The signal has aborted: nothing else ends the retries.
		}
	}
}

class Cleaner {
	readonly #options: ControllerOptions;
	readonly #now: () => number;
	/** By UID of the PeerPod: the time since which its node has no daemon. */
	#since = new Map<string, number>();
	/** By the PeerPod's UID. */
	readonly #abandoned = new FailureLog();
	/** By the PeerPod's UID. */
	readonly #undeletable = new FailureLog();

	constructor(options: ControllerOptions) {
		this.#options = options;
		this.#now = options.now ?? (() => performance.now());
	}

	async round(signal: AbortSignal): Promise<void> {
		const {items} = await this.#options.client.list(peerPods, {}, signal);
		const candidates = items.flatMap(item => {
			const registration = registrationOf(item);
			return registration?.isBeingDeleted === true ? [{...item, registration}] : [];
		});
		const views = candidates.length === 0 ? undefined : await this.#nodes(signal);
		const since = new Map<string, number>();
		for (const candidate of candidates) {
			signal.throwIfAborted();
			await this.#decide(candidate, views?.(candidate.registration.node) ?? unseen, since, signal);
		}

		this.#since = since;
	}

	async #decide(
		candidate: Candidate,
		node: NodeView,
		since: Map<string, number>,
		signal: AbortSignal,
	): Promise<void> {
		const {log} = this.#options;
		const {
			registration,
			metadata: {uid, name},
		} = candidate;
		const now = this.#now();
		const names = {
			instanceName: name,
			node: registration.node,
			pod: `${registration.pod.namespace}/${registration.pod.name}`,
		};
		const hasPod = await this.#exists(registration.pod, signal);
		const verdict = decideOnVm(
			registration,
			{node, hasPod, since: this.#since.get(uid) ?? now, now},
			this.#options,
		);
		switch (verdict.action) {
			case 'leave': {
				if (verdict.why !== 'of another cluster') {
					this.#abandoned.recovered(uid);
				} else if (this.#abandoned.failed(uid)) {
					log.warn(
						{
							...names,
							reason: `CLUSTER_ID is ${JSON.stringify(this.#options.cluster)} here and ${JSON.stringify(registration.cluster)} there`,
						},
						'ignoring a PeerPod: its daemon has another CLUSTER_ID',
					);
				}

				return;
			}

			case 'wait': {
				since.set(uid, verdict.since);
				if (this.#abandoned.failed(uid)) {
					log.info(names, 'pod VM has no daemon; it will be deleted after the grace period');
				}

				return;
			}

			case 'delete': {
				since.set(uid, this.#since.get(uid) ?? now);
				try {
					const wasThere = await this.#options.deleteVm(registration, signal);
					await this.#release(candidate, signal);
					since.delete(uid);
					this.#abandoned.recovered(uid);
					this.#undeletable.recovered(uid);
					log.info(
						{...names, reason: verdict.why},
						wasThere ? 'abandoned pod VM deleted' : 'PeerPod released; its VM was already gone',
					);
				} catch (error) {
					signal.throwIfAborted();
					log[this.#undeletable.failed(uid) ? 'warn' : 'debug'](
						{...names, err: error},
						'could not delete an abandoned pod VM; retrying',
					);
				}
			}
		}
	}

	async #exists({name, namespace, uid}: VmRegistration['pod'], signal: AbortSignal): Promise<boolean> {
		try {
			return (await this.#options.client.get(pods, {name, namespace}, signal)).metadata.uid === uid;
		} catch (error) {
			if (isNotFound(error)) {
				return false;
			}

			throw error;
		}
	}

	async #release({metadata: {uid, name, namespace, finalizers}}: Candidate, signal: AbortSignal): Promise<void> {
		const {client} = this.#options;
		try {
			await client.patch(
				peerPods,
				{name, ...present({namespace})},
				{
					json: [{op: 'test', path: '/metadata/uid', value: uid}, ...withoutFinalizer(finalizers)],
				},
				signal,
			);
		} catch (error) {
			if (!isNotFound(error)) {
				throw error;
			}
		}
	}

	async #nodes(signal: AbortSignal): Promise<(name: string) => NodeView> {
		const {client, namespace, daemonSelector} = this.#options;
		const [all, daemons] = await Promise.all([
			client.list(nodes, {}, signal),
			client.list(daemonPods, {namespace, labelSelector: daemonSelector}, signal),
		]);
		const ready = new Map(all.items.map(({metadata, isReady: is}) => [metadata.name, is]));
		const served = new Set(
			daemons.items.flatMap(({isReady: is, node}) => (is && node !== undefined ? [node] : [])),
		);
		return name => ({exists: ready.has(name), isReady: ready.get(name) === true, hasDaemon: served.has(name)});
	}
}

const unseen: NodeView = {exists: false, isReady: false, hasDaemon: false};

/**
 * Asks the API server whether the pod of a VM still exists. A wrong "gone" would delete the VM of a healthy pod. So
 * only two answers mean "gone": the API itself reports that there is no pod with this name, or the pod has another UID.
 * Everything else means "unknown": no answer, a refusal, or a 404 from a proxy.
 *
 * For static pods, the result is always "unknown": the API server has only a mirror pod, which is created and deleted
 * with the node object and has a different UID. Source: Kubernetes, "Create static Pods"; kubelet, pkg/kubelet/config
 * (a static pod is named `NAME-NODE`, its UID is a hash without dashes).
 */
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {Scope} from '../core/lifetime.ts';
import type {Logger} from '../core/log.ts';
import type {RegisteredVm, PodIdentity, Presence} from '../sandbox/ports.ts';
import type {KubernetesClient} from './client.ts';
import {isObjectMissing, isRefusal} from './errors.ts';
import {isMirror, pods} from './pods.ts';

export interface PodPresenceOptions {
	readonly client: Pick<KubernetesClient, 'get'>;
	/** NODE_NAME */
	readonly node: string;
	/** The UID of the pod in the PeerPod of a VM, if kata did not send it. */
	readonly ownerUid: (vm: RegisteredVm, signal: AbortSignal) => Promise<string | undefined>;
	/** Time limit of one request. */
	readonly timeoutMs?: number;
	readonly log: Logger;
}

export class PodPresence {
	readonly #options: Required<PodPresenceOptions>;
	readonly #refusals = new FailureLog();

	constructor(options: PodPresenceOptions) {
		this.#options = {timeoutMs: 4000, ...options};
	}

	/** See `Cluster`. */
	async of(vm: RegisteredVm, signal: AbortSignal): Promise<Presence> {
		signal.throwIfAborted();
		if (mayBeStatic(vm.pod, this.#options.node)) {
			return 'unknown';
		}

		using scope = new Scope(signal).deadline(this.#options.timeoutMs, 'the Kubernetes API');
		try {
			const presence = await this.#ask(vm, scope.signal);
			this.#refusals.recovered();
			return presence;
		} catch (error) {
			signal.throwIfAborted();
			if (isRefusal(error) && this.#refusals.failed()) {
				this.#options.log.warn(
					{err: error},
					'could not read pods from the Kubernetes API; detecting deleted pods only by their network namespaces',
				);
			}

			return 'unknown';
		}
	}

	async #ask(vm: RegisteredVm, signal: AbortSignal): Promise<Presence> {
		const {client, ownerUid} = this.#options;
		const {name, namespace} = vm.pod;
		try {
			const {metadata} = await client.get(pods, {name, namespace}, signal);
			if (isMirror(metadata)) {
				return 'unknown';
			}

			const uid = vm.pod.uid ?? (await ownerUid(vm, signal));
			return uid === undefined || uid === metadata.uid ? 'present' : 'gone';
		} catch (error) {
			if (isObjectMissing(error)) {
				return 'gone';
			}

			throw error;
		}
	}
}

/** The API server assigns a UUID to every pod; UIDs of a kubelet or runtime do not exist there. */
function mayBeStatic({name, uid}: PodIdentity, node: string): boolean {
	return uid === undefined
		? name.endsWith(`-${node.toLowerCase()}`)
		: !/^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/iv.test(uid);
}

/**
 * Implements `Cluster` with the API server of the cluster of the daemon's pod: one client and the parts that use it.
 * Each part handles failures of the API server itself; joining only needs two files.
 */
import type {Logger, Secret} from '../core/log.ts';
import {present} from '../core/present.ts';
import type {RegisteredVm, Cluster, PodEvent, PodIdentity, Presence} from '../sandbox/ports.ts';
import {KubernetesClient} from './client.ts';
import {PodEvents} from './events.ts';
import {NodeCapacity} from './node-capacity.ts';
import {PeerPods} from './peer-pods.ts';
import {PodPresence} from './pod-presence.ts';
import {PullSecrets} from './pull-secrets.ts';
import {ServiceAccount, type ApiServerAddress} from './service-account.ts';

export interface ClusterOptions {
	readonly server: ApiServerAddress;
	/** Directory of the token of the pod; the usual one of Kubernetes if absent. */
	readonly serviceAccountDirectory?: string;
	/** NODE_NAME */
	readonly node: string;
	/** CLUSTER_ID */
	readonly cluster: string;
	/** PEERPODS_LIMIT_PER_NODE: if negative, the capacity of the node is not changed; undefined if not set. */
	readonly limitPerNode: number | 'unlimited' | undefined;
	/** POD_UID */
	readonly podUid: string | undefined;
	/** DAEMONSET_NAME */
	readonly daemonSet: string;
	/** The instance names of all VMs of this node, including incomplete ones. */
	readonly vmNames: (signal: AbortSignal) => Promise<readonly string[]>;
	/** Minimum age of a PeerPod without a VM before it is withdrawn: longer than any start. */
	readonly leftOverMs?: number;
	/** Aborts when the daemon gets SIGTERM; it is disposed after its shutdown. */
	readonly stopping?: AbortSignal;
	readonly log: Logger;
}

/** @throws AdaptorError 'failed-precondition' if the pod has no service account */
export async function joinCluster(options: ClusterOptions): Promise<KubernetesCluster> {
	const account = new ServiceAccount(options.serviceAccountDirectory);
	return new KubernetesCluster(options, account, await account.namespace());
}

export class KubernetesCluster implements Cluster, AsyncDisposable {
	readonly #client: KubernetesClient;
	readonly #events: PodEvents;
	readonly #pullSecrets: PullSecrets;
	readonly #peerPods: PeerPods;
	readonly #presence: PodPresence;
	readonly #capacity: NodeCapacity | undefined;

	constructor(
		{server, node, cluster, limitPerNode, podUid, daemonSet, vmNames, leftOverMs, stopping, log}: ClusterOptions,
		account: ServiceAccount,
		namespace: string,
	) {
		const client = new KubernetesClient({server, account, log});
		this.#client = client;
		this.#events = new PodEvents({client, node, log});
		this.#pullSecrets = new PullSecrets({client, tell: (pod, event) => this.#events.tell(pod, event), log});
		this.#peerPods = new PeerPods({
			client,
			node,
			cluster,
			vmNames,
			...present({leftOverMs}),
			log,
		});
		this.#presence = new PodPresence({
			client,
			node,
			ownerUid: async (vm, signal) => this.#peerPods.ownerUid(vm, signal),
			log,
		});
		this.#capacity =
			limitPerNode === 'unlimited'
				? undefined
				: new NodeCapacity({
						client,
						node,
						namespace,
						daemonSet,
						configured: limitPerNode,
						...present({podUid, stopping}),
						log,
					});
	}

	/** The last known limit of pod VMs of this node; undefined without a limit. */
	get limit(): number | undefined {
		return this.#capacity?.limit;
	}

	async pullCredentials(pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined> {
		return this.#pullSecrets.pullCredentials(pod, signal);
	}

	async registerVm(vm: RegisteredVm, signal: AbortSignal): Promise<void> {
		await this.#peerPods.registerVm(vm, signal);
	}

	unregisterVm(vm: RegisteredVm): void {
		this.#peerPods.unregisterVm(vm);
	}

	async podPresence(vm: RegisteredVm, signal: AbortSignal): Promise<Presence> {
		return this.#presence.of(vm, signal);
	}

	reconcile(vms: readonly RegisteredVm[]): void {
		this.#peerPods.reconcile(vms);
	}

	recordEvent(pod: PodIdentity, event: PodEvent): void {
		this.#events.tell(pod, event);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await Promise.all(
			[this.#peerPods, this.#events, this.#capacity].map(async part => part?.[Symbol.asyncDispose]()),
		);
		this.#client[Symbol.dispose]();
	}
}

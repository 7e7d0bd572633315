/**
 * The ports of the domain. The kata shim and CSI plugins call `Sandboxes`. The sandboxes call `PodNetworks`, `PodVms`,
 * `AgentRelays` and `Cluster`. Every implementation of a port, in-memory or real, passes the same suite in
 * test/contract.
 */
import type {Secret} from '../core/log.ts';
import type {PodVmEndedError} from './vm-ended.ts';

/** The sandbox id of kata: 64 hexadecimal digits from containerd and CRI-O. `[A-Za-z0-9._-]{1,128}` is accepted. */
export type SandboxId = string;

export interface PodIdentity {
	readonly name: string;
	readonly namespace: string;
	/** Only known with CRI-O. */
	readonly uid?: string;
}

/** The remote hypervisor API of kata, without its wire format. Implemented by the domain, called by `api/`. */
export interface Sandboxes {
	/**
	 * Admits a sandbox, inspects the network of its pod and reserves resources. Starts nothing.
	 * @throws 'already-exists' for an id that is in use, 'invalid-argument' for bad annotations or netns
	 */
	create(request: CreateSandbox, signal: AbortSignal): Promise<{readonly agentSocketPath: string}>;
	/**
	 * Resolves when the kata agent in the VM can be reached at the agent socket. On failure, deadline or abort, the VM
	 * is removed; the sandbox stays as failed until it is stopped.
	 * @throws 'not-found' for an id that was never created or is stopped
	 */
	start(id: SandboxId, signal: AbortSignal): Promise<void>;
	/** Ends a running start, then removes everything. Succeeds if the sandbox does not exist. */
	stop(id: SandboxId, signal: AbortSignal): Promise<void>;
	/**
	 * The name of the VM of a pod on this node.
	 * @param wait whether to wait until the VM exists or the signal aborts
	 * @throws 'not-found' if there is no VM and `wait` is false
	 */
	vmOf(pod: Pick<PodIdentity, 'name' | 'namespace'>, wait: boolean, signal: AbortSignal): Promise<string>;
}

export interface CreateSandbox {
	readonly id: SandboxId;
	readonly annotations: Readonly<Record<string, string>>;
	/** Absolute path, e.g. `/var/run/netns/cni-…`. */
	readonly netnsPath: string;
}

/**
 * One end of the VXLAN tunnel of a pod, as plain data. It is part of the sandbox record and, as `pod-network`, of the
 * configuration of the VM. Addresses are dotted IPv4, prefixes `a.b.c.d/n`. Field names are those of the `pod-network`
 * object of existing pod VM images.
 */
export interface PodNetwork {
	readonly netnsPath: string;
	/** The namespace that was found at that path; absent in records of earlier versions. */
	readonly netns?: NetnsIdentity;
	/** Address of the pod with its prefix length. */
	readonly podIp: string;
	readonly podHwAddr: string;
	/** Name of the primary interface in the netns of the pod, e.g. `eth0`. */
	readonly interface: string;
	/** Address of the worker node towards the VMs, with its prefix length: the VXLAN remote of the VM. */
	readonly workerNodeIp: string;
	readonly tunnelType: 'vxlan';
	readonly routes: readonly PodRoute[];
	readonly neighbors: readonly PodNeighbor[];
	/** Bytes: min(pod MTU, underlay MTU - 50). */
	readonly mtu: number;
	readonly index: number;
	readonly vxlanPort: number;
	/** The reserved VXLAN network identifier. */
	readonly vxlanId: number;
	readonly dedicated: boolean;
	readonly externalNetViaPodVm: boolean;
}

/**
 * Identifies a network namespace independently of its path. Numbers are decimal text, because JSON numbers cannot hold
 * an inode.
 */
export interface NetnsIdentity {
	readonly device: string;
	readonly inode: string;
	/**
	 * Identifies the directory of the path. If the same directory no longer contains the name, the namespace is gone.
	 */
	readonly directory: {readonly device: string; readonly inode: string};
}

/** Whether something exists. `gone` requires proof; without proof the result is `unknown`. */
export type Presence = 'present' | 'gone' | 'unknown';

export interface PodRoute {
	/** Prefix; `0.0.0.0/0` is the default route, as in upstream. */
	readonly dst: string;
	/** `''` if directly connected. */
	readonly gw: string;
	readonly dev: string;
	readonly protocol?: string;
	/** Absent for `universe`. */
	readonly scope?: string;
}

export interface PodNeighbor {
	readonly ip: string;
	readonly hwAddr: string;
	readonly dev: string;
	readonly state: string;
}

/** The network namespace and the tunnel of a pod. */
export interface PodNetworks {
	/**
	 * Reads the netns of the pod and reserves a VNI in it. On failure, nothing stays reserved. A namespace is
	 * identified by device and inode, not by path. A second sandbox in the same namespace is refused
	 * ('already-exists').
	 */
	reserve(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<PodNetwork>;
	/**
	 * Undoes an interrupted reservation that is known only by its netns, for example after a crash of the daemon.
	 * Succeeds if nothing is reserved there or the netns is gone. Does not touch reservations of other sandboxes or a
	 * tunnel that is attached to a VM.
	 */
	releaseByNetns(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<void>;
	/**
	 * Whether the namespace still exists. It is gone if its directory no longer contains the name, or if the name is
	 * another namespace. Never throws: without proof, for example if the directory is not mounted here, the result is
	 * 'unknown'.
	 */
	presence(network: PodNetwork, signal: AbortSignal): Promise<Presence>;
	/** Adds the identity of the namespace that is currently at the path, for a record of an earlier version. */
	identify(network: PodNetwork, signal: AbortSignal): Promise<PodNetwork>;
	/**
	 * Points the tunnel at the VM and redirects the traffic of the pod into it. Idempotent; a second address replaces
	 * the first.
	 */
	attach(network: PodNetwork, vmAddress: string, signal: AbortSignal): Promise<void>;
	/**
	 * Takes over the reservation in a record of an earlier run, so that no other sandbox can get the namespace or the
	 * VNI.
	 */
	adopt(sandboxId: SandboxId, network: PodNetwork): void;
	/**
	 * Disconnects the pod from its VM and keeps the VNI reserved, because a VM that could not be removed may still
	 * send. Succeeds if there is no tunnel or the netns is gone.
	 */
	detach(network: PodNetwork, signal: AbortSignal): Promise<void>;
	/** Removes tunnel, redirection and reservation. Succeeds if they, or the netns, are already gone. */
	release(network: PodNetwork, signal: AbortSignal): Promise<void>;
	/**
	 * Removes the host-side state of a tunnel that is known only by its VNI; the rest is deleted with the netns. Does
	 * not touch known tunnels.
	 */
	releaseByVni(vni: number, signal: AbortSignal): Promise<void>;
}

/** A file for the cloud-init disk of the VM. Its content may include keys, so it is never printed. */
export interface GuestFile {
	/** Absolute path in the VM. */
	readonly path: string;
	readonly content: Secret<string>;
}

export interface PodVmSpec {
	readonly sandboxId: SandboxId;
	/**
	 * `podvm-<pod>-<first 8 of the sandbox id>`, at most 63 characters of `[a-z0-9-]`. It is the name, the host name
	 * and the TLS name of the VM.
	 */
	readonly instanceName: string;
	readonly pod: PodIdentity;
	readonly vcpus: number;
	/** Memory for the pod; the extra memory of a confidential VM is added to it. */
	readonly memoryMib: number;
	/** A volume of the configured pool. If absent, the configured default. */
	readonly image?: string;
	/** Stored in the metadata of the VM, so that an orphaned VM reveals its VNI. */
	readonly vni: number;
	readonly files: readonly GuestFile[];
}

export interface PodVm {
	readonly sandboxId: SandboxId;
	/** The instance name, as in PodVMInfo and in tools of the hypervisor. */
	readonly name: string;
	/** Identifies the VM at the hypervisor. It may be reused after deletion: never delete by it alone. */
	readonly uuid: string;
	readonly mac: string;
}

/** Virtual machines of this cluster and node on the KVM host. */
export interface PodVms {
	/**
	 * Defines the VM, creates its disks and starts it. Resolves when the VM runs. On failure or abort, nothing is left.
	 */
	start(spec: PodVmSpec, signal: AbortSignal): Promise<PodVm>;
	/**
	 * Candidate addresses of the VM, likeliest first, each once. A candidate may be outdated (a remembered lease): only
	 * TLS proves who answers. Continues until the consumer returns or the signal aborts.
	 * @throws PodVmEndedError when the VM is no longer running, with the cause; never for another reason
	 */
	addresses(vm: PodVm, signal: AbortSignal): AsyncGenerator<string, never>;
	/**
	 * Restricts a VM to its verified address, if the host can filter its traffic. Called before the containers of the
	 * pod start. Does nothing if filters are unsupported or turned off.
	 */
	bindAddress(vm: PodVm, address: string, signal: AbortSignal): Promise<void>;
	/**
	 * The last console lines of a VM that this daemon started, read while its addresses were requested: a few lines of
	 * printable text, oldest first. Empty if unknown, or if the VM is confidential.
	 */
	consoleTail(vm: PodVm): readonly string[];
	/**
	 * Resolves when the VM has ended or was deleted, with the cause ('aborted'). Survives interruptions of the
	 * connection to the hypervisor. Only rejects with the reason of the signal.
	 */
	ended(vm: PodVm, signal: AbortSignal): Promise<PodVmEndedError>;
	/**
	 * Deletes the VM and the disks of a sandbox in any state, whichever daemon of this node owns it. Succeeds if there
	 * are none. Never touches other clusters or nodes. If a part cannot be removed, removes the rest, then rejects with
	 * the leftovers.
	 */
	delete(sandboxId: SandboxId, signal: AbortSignal): Promise<void>;
	/** All VMs of this cluster and node, including incomplete ones. */
	list(signal: AbortSignal): Promise<readonly PodVmRecord[]>;
}

/** A VM of this cluster and node, as stored at the hypervisor. */
export interface PodVmRecord extends PodVm {
	readonly pod: PodIdentity;
	readonly vni: number;
	readonly createdAt: Date;
	readonly running: boolean;
	/** The owner: this PODS_DIR, another PODS_DIR on this node, or unknown for VMs of old versions ('unmarked'). */
	readonly ownership: VmOwnership;
	/** The PODS_DIR of the owner of a 'foreign' VM. */
	readonly podsDir?: string;
}

export type VmOwnership = 'ours' | 'unmarked' | 'foreign';

/** TLS configuration for the forwarder in the VM: `tls-*` in apf.json. */
export interface ForwarderTls {
	/** PEM. Absent with a custom CA: then the image contains the certificate. */
	readonly serverKey?: Secret<string>;
	readonly serverCert?: string;
	/** PEM of the CA for client certificates. */
	readonly clientCa?: string;
	readonly minVersion?: 'VersionTLS12' | 'VersionTLS13';
	/** IANA names. */
	readonly cipherSuites?: readonly string[];
}

/** Relays the traffic of the kata agent from the unix socket of the shim to the VM over mutual TLS. */
export interface AgentRelays {
	/** Issues a server certificate for one VM, and the TLS policy for its clients. */
	issue(instanceName: string, signal: AbortSignal): Promise<ForwarderTls>;
	/**
	 * Dials each address as it arrives, and retries it until the forwarder listens. Uses the first address at which TLS
	 * verifies the VM. Then serves `socketPath`. Rejects if `addresses` throws (the VM ended) or the signal aborts;
	 * then nothing is left.
	 */
	open(target: RelayTarget, addresses: AsyncIterable<string>, signal: AbortSignal): Promise<AgentRelay>;
	/**
	 * @throws 'invalid-argument' for a socket path that is too long for the kernel
	 */
	assertServable(socketPath: string): void;
	/** Removes the socket of a crashed daemon at the path; succeeds if there is none. */
	discard(socketPath: string): Promise<void>;
}

export interface RelayTarget {
	readonly sandboxId: SandboxId;
	readonly instanceName: string;
	/** Absolute. The relay creates its directory (0700), and removes it when disposed. */
	readonly socketPath: string;
	/** Called while the relay is being opened, when the result of dialling an address changes. Never throws. */
	readonly onProgress?: (address: string, progress: string) => void;
}

/**
 * Outlives its connections to the VM: it reconnects after a loss, sends replayable calls again, and ends all others as
 * UNAVAILABLE. Disposing closes the socket and all connections at once, and removes the socket file.
 */
export interface AgentRelay extends AsyncDisposable {
	/** The verified address of the VM. */
	readonly address: string;
	/**
	 * Call this when the VM is permanently gone. All current and future calls end with UNAVAILABLE at once, with the
	 * reason in their text. The socket is served until the relay is disposed. If called again, the first reason is
	 * kept. Does nothing after disposal.
	 */
	fail(reason: Error): void;
	/**
	 * Called when this daemon ends and the pod continues. A relay in the relay process stays open for the next daemon;
	 * a relay in this process is closed, as by disposing. Idempotent.
	 */
	leave(): Promise<void>;
}

/** Identifies a pod VM to the cluster. */
export interface RegisteredVm {
	readonly sandboxId: SandboxId;
	readonly instanceName: string;
	readonly pod: PodIdentity;
}

/** A Kubernetes event for the owner of the pod. */
export interface PodEvent {
	readonly type: 'Normal' | 'Warning';
	/** One CamelCase word for programs. */
	readonly reason: string;
	readonly message: string;
}

/**
 * The Kubernetes cluster of the pods. Problems with the cluster never fail a pod or delay it for long; the
 * implementation logs them.
 */
export interface Cluster {
	/**
	 * The credentials for the image pulls of the pod: the content of `auth.json`. Undefined if there are none, or if
	 * reading them takes too long. Only rejects with the reason of the signal.
	 */
	pullCredentials(pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined>;
	/**
	 * Registers the VM of the pod, so that the controller can delete it if this node is lost. Idempotent. Resolves when
	 * that is done or after a short time; then it continues in the background. Only rejects with the reason of the
	 * signal.
	 */
	registerVm(vm: RegisteredVm, signal: AbortSignal): Promise<void>;
	/** Unregisters a VM that is gone, in the background. Other VMs of the same pod stay registered. */
	unregisterVm(vm: RegisteredVm): void;
	/**
	 * Whether the pod with this UID still exists; another pod with the same name does not count. `unknown` without an
	 * API server, if it does not answer in time, and for static pods. Only rejects with the reason of the signal.
	 */
	podPresence(vm: RegisteredVm, signal: AbortSignal): Promise<Presence>;
	/**
	 * Called periodically with all VMs of this node that should be registered. Registers and unregisters VMs in the
	 * background to match.
	 */
	reconcile(vms: readonly RegisteredVm[]): void;
	/** Records an event of a pod in the background. Repeated events may be dropped. */
	recordEvent(pod: PodIdentity, event: PodEvent): void;
}

/** Other daemons on the same PODS_DIR. During an update, two daemons run. */
export interface OtherDaemons {
	/** Whether a daemon that started earlier may still run. Once false, it stays false. */
	hasPredecessor(): boolean;
	/** Resolves when there is no predecessor. Only rejects with the reason of the signal. */
	predecessorsEnded(signal: AbortSignal): Promise<void>;
	/** Whether a daemon that started later runs. */
	hasSuccessor(): Promise<boolean>;
}

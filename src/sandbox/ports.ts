/**
 * The domain's edges, in its own words. Above: what the kata shim and CSI plugins ask of us (`Sandboxes`). Below: what
 * a sandbox needs from the world (`PodNetworks`, `PodVms`, `AgentRelays`), and the cluster that it belongs to
 * (`Cluster`). Every implementation of a port, in-memory or real, passes the same suite in test/contract.
 */
import type {Secret} from '../core/log.ts';
import type {PodVmEndedError} from './vm-ended.ts';

/** kata's sandbox id: 64 hexadecimal digits from containerd and CRI-O; anything of `[A-Za-z0-9._-]{1,128}` is taken. */
export type SandboxId = string;

export interface PodIdentity {
	readonly name: string;
	readonly namespace: string;
	/** Known with CRI-O only. */
	readonly uid?: string;
}

/** What kata's remote hypervisor API offers, without its wire format. Implemented by the domain, called by `api/`. */
export interface Sandboxes {
	/**
	 * Admits a sandbox, inspects its pod's network and reserves what it will need; starts nothing.
	 * @throws 'already-exists' for an id that is in use, 'invalid-argument' for bad annotations or netns
	 */
	create(request: CreateSandbox, signal: AbortSignal): Promise<{readonly agentSocketPath: string}>;
	/**
	 * Resolves when the kata agent in the VM can be reached at the agent socket. On failure, deadline or abort nothing
	 * of the VM is left; the sandbox itself stays, failed, until it is stopped.
	 * @throws 'not-found' for an id that was never created or is stopped
	 */
	start(id: SandboxId, signal: AbortSignal): Promise<void>;
	/** Ends a start that is under way, then removes everything. Stopping what does not exist succeeds. */
	stop(id: SandboxId, signal: AbortSignal): Promise<void>;
	/**
	 * The name of the VM of a pod on this node.
	 * @param wait until there is one, or the signal aborts
	 * @throws 'not-found' when there is none and `wait` is false
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
 * One end of a pod's VXLAN tunnel, as plain data: it is written to the sandbox's record and, as `pod-network`, to the
 * VM. Addresses are dotted IPv4, prefixes `a.b.c.d/n`. Fields are named after the `pod-network` object of existing pod
 * VM images.
 */
export interface PodNetwork {
	readonly netnsPath: string;
	/** Which namespace was found at that path; absent in records of earlier versions. */
	readonly netns?: NetnsIdentity;
	/** The pod's address with its prefix length. */
	readonly podIp: string;
	readonly podHwAddr: string;
	/** Name of the pod's primary interface in its netns, e.g. `eth0`. */
	readonly interface: string;
	/** The worker's address towards the VMs with its prefix length: the VM's VXLAN remote. */
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
 * Which network namespace it is, whatever path leads to it. Numbers as decimal text: JSON's numbers cannot hold an
 * inode.
 */
export interface NetnsIdentity {
	readonly device: string;
	readonly inode: string;
	/**
	 * Of the directory that names it. One that is the same and has no such name any more proves that the namespace is
	 * gone.
	 */
	readonly directory: {readonly device: string; readonly inode: string};
}

/** Whether something exists. `gone` is proven, never guessed: what cannot be seen is `unknown`. */
export type Presence = 'present' | 'gone' | 'unknown';

export interface PodRoute {
	/** Prefix; `0.0.0.0/0` is the default route, as the existing adaptor sends it. */
	readonly dst: string;
	/** `''` when directly connected. */
	readonly gw: string;
	readonly dev: string;
	readonly protocol?: string;
	/** Omitted for `universe`. */
	readonly scope?: string;
}

export interface PodNeighbor {
	readonly ip: string;
	readonly hwAddr: string;
	readonly dev: string;
	readonly state: string;
}

/** The pod's network namespace and its tunnel. */
export interface PodNetworks {
	/**
	 * Reads the pod's netns and reserves a VNI in it. On failure nothing stays reserved. A namespace is known by its
	 * device and inode: two paths to one are one, and a second sandbox in it is refused ('already-exists').
	 */
	reserve(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<PodNetwork>;
	/**
	 * Undoes a reservation of which only the place is known, for it was cut off, perhaps in a daemon that has died.
	 * Succeeds when nothing is reserved there, or the netns is gone. Leaves alone what another sandbox has there, and a
	 * tunnel that leads to a VM.
	 */
	releaseByNetns(sandboxId: SandboxId, netnsPath: string, signal: AbortSignal): Promise<void>;
	/**
	 * Whether the namespace still exists. It is gone when the directory that had it has no such name any more, or has
	 * another namespace by that name. Never throws: what cannot be seen, such as a directory that is not mounted here,
	 * is 'unknown'.
	 */
	presence(network: PodNetwork, signal: AbortSignal): Promise<Presence>;
	/** The network with the identity of the namespace that is at its path now, for a record of an earlier version. */
	identify(network: PodNetwork, signal: AbortSignal): Promise<PodNetwork>;
	/**
	 * Points the tunnel at the VM and redirects the pod's traffic into it. Idempotent; a second address replaces the
	 * first.
	 */
	attach(network: PodNetwork, vmAddress: string, signal: AbortSignal): Promise<void>;
	/**
	 * What an earlier run has reserved, as its record says: nobody else may have the namespace or the VNI, before it is
	 * attached again too.
	 */
	adopt(sandboxId: SandboxId, network: PodNetwork): void;
	/**
	 * Cuts the pod off from its VM and keeps the VNI reserved: a VM that could not be removed may still send. Succeeds
	 * when there is no tunnel, or the netns is gone.
	 */
	detach(network: PodNetwork, signal: AbortSignal): Promise<void>;
	/** Removes tunnel, redirection and reservation. Succeeds when they, or the netns, are already gone. */
	release(network: PodNetwork, signal: AbortSignal): Promise<void>;
	/**
	 * Removes what a tunnel has outside of its netns, where only its VNI is known any more: the rest goes with the
	 * netns. Leaves alone what belongs to tunnels that are known.
	 */
	releaseByVni(vni: number, signal: AbortSignal): Promise<void>;
}

/** A file for the VM's cloud-init disk. Contents may hold keys, so they never print. */
export interface GuestFile {
	/** Absolute path in the VM. */
	readonly path: string;
	readonly content: Secret<string>;
}

export interface PodVmSpec {
	readonly sandboxId: SandboxId;
	/**
	 * `podvm-<pod>-<first 8 of the sandbox id>`, at most 63 characters of `[a-z0-9-]`: the VM's name, its host name and
	 * its TLS name.
	 */
	readonly instanceName: string;
	readonly pod: PodIdentity;
	readonly vcpus: number;
	/** What the pod is to have; what a VM of its kind takes for itself comes on top. */
	readonly memoryMib: number;
	/** A volume of the configured pool; the configured default when absent. */
	readonly image?: string;
	/** Recorded with the VM, so that whoever finds it knows which VNI it held. */
	readonly vni: number;
	readonly files: readonly GuestFile[];
}

export interface PodVm {
	readonly sandboxId: SandboxId;
	/** The instance name: what PodVMInfo answers and what the hypervisor's own tools show. */
	readonly name: string;
	/** The hypervisor's identifier of this VM. Recycled after deletion: never delete by it alone. */
	readonly uuid: string;
	readonly mac: string;
}

/** Virtual machines on the KVM host, those of this cluster and node only. */
export interface PodVms {
	/**
	 * Records the intent at the hypervisor, makes the disks, starts. Resolves once the VM runs. On failure or abort
	 * nothing is left behind.
	 */
	start(spec: PodVmSpec, signal: AbortSignal): Promise<PodVm>;
	/**
	 * Addresses at which the VM may be reached, likeliest first, each once. A guess may come before the guest is up (a
	 * remembered lease): only TLS proves who answers. Goes on looking until the consumer returns or the signal aborts.
	 * @throws PodVmEndedError as soon as the VM is no longer running, telling how it ended; that error for no other
	 * cause
	 */
	addresses(vm: PodVm, signal: AbortSignal): AsyncGenerator<string, never>;
	/**
	 * Lets a VM that was started here use only the address that it has proven to have, where the host can filter its
	 * traffic. Before the VM runs anything of its pod. Does nothing where the host cannot, or is not meant to: the
	 * start has told.
	 */
	bindAddress(vm: PodVm, address: string, signal: AbortSignal): Promise<void>;
	/**
	 * What a VM that this daemon has started printed last on its console while its addresses were asked for: a few
	 * lines of printable text, oldest first. Empty where that is not known, or not to be known.
	 */
	consoleTail(vm: PodVm): readonly string[];
	/**
	 * Resolves when the VM has ended by itself or was deleted, at once if it has already, with how ('aborted'); however
	 * long that takes, and also when the hypervisor is away in between. Rejects with the signal's reason only.
	 */
	ended(vm: PodVm, signal: AbortSignal): Promise<PodVmEndedError>;
	/**
	 * Deletes VM and disks of a sandbox, whatever state they are in, whichever daemon of this node answers for it.
	 * Succeeds when there are none. Touches nothing of other clusters or nodes. Goes on past each part that cannot be
	 * removed, and then rejects, naming what is left.
	 */
	delete(sandboxId: SandboxId, signal: AbortSignal): Promise<void>;
	/** All VMs of this cluster and node, half-made ones too. */
	list(signal: AbortSignal): Promise<readonly PodVmRecord[]>;
}

/** What the hypervisor remembers of a VM of ours. */
export interface PodVmRecord extends PodVm {
	readonly pod: PodIdentity;
	readonly vni: number;
	readonly createdAt: Date;
	readonly running: boolean;
	/** Who answers for it: this PODS_DIR, another one on this node, or a version that did not say ('unmarked'). */
	readonly ownership: VmOwnership;
	/** The other PODS_DIR, as the daemon there calls it; for a VM that is 'foreign'. */
	readonly podsDir?: string;
}

export type VmOwnership = 'ours' | 'unmarked' | 'foreign';

/** What the VM's forwarder needs to serve TLS; goes to the VM as `tls-*` of apf.json. */
export interface ForwarderTls {
	/** PEM. Absent with a CA of the administrator's, whose images carry their own certificate. */
	readonly serverKey?: Secret<string>;
	readonly serverCert?: string;
	/** PEM of the certificate that client certificates are verified against. */
	readonly clientCa?: string;
	readonly minVersion?: 'VersionTLS12' | 'VersionTLS13';
	/** IANA names. */
	readonly cipherSuites?: readonly string[];
}

/** The kata agent's traffic: from the shim's unix socket to the VM over mutual TLS. */
export interface AgentRelays {
	/** A server certificate for one VM, and what it shall accept. */
	issue(instanceName: string, signal: AbortSignal): Promise<ForwarderTls>;
	/**
	 * Dials the addresses as they come, retrying each until the forwarder listens, and takes the first that proves by
	 * TLS to be the VM. Then serves `socketPath`. Rejects when `addresses` throws (the VM died) or the signal aborts;
	 * nothing is left then.
	 */
	open(target: RelayTarget, addresses: AsyncIterable<string>, signal: AbortSignal): Promise<AgentRelay>;
	/**
	 * @throws 'invalid-argument' for a socket path that the kernel would not take: such a sandbox could never be served
	 */
	assertServable(socketPath: string): void;
	/** Removes the socket that a daemon which died has left at the path; succeeds when there is none. */
	discard(socketPath: string): Promise<void>;
}

export interface RelayTarget {
	readonly sandboxId: SandboxId;
	readonly instanceName: string;
	/** Absolute; its directory is made (0700) by the relay and removed when it is disposed. */
	readonly socketPath: string;
}

/**
 * Outlives its connections to the VM: one that is lost is dialled again, calls that only wait are made again, all
 * others end as UNAVAILABLE. Disposing closes the socket and all connections at once, and removes the socket's file.
 */
export interface AgentRelay extends AsyncDisposable {
	/** The address that proved to be the VM's. */
	readonly address: string;
	/**
	 * The VM is gone, and will not come back: all calls under way, and all that come, end as UNAVAILABLE at once, with
	 * the reason in their text. The socket is served until the relay is disposed. The first reason stays; after
	 * disposing this does nothing.
	 */
	fail(reason: Error): void;
}

/** A pod's VM, as those know it who may outlive this node. */
export interface RegisteredVm {
	readonly sandboxId: SandboxId;
	readonly instanceName: string;
	readonly pod: PodIdentity;
}

/** Something about its pod that the pod's owner should see where they look. */
export interface PodEvent {
	readonly type: 'Normal' | 'Warning';
	/** One CamelCase word, for machines. */
	readonly reason: string;
	readonly message: string;
}

/**
 * The cluster that the pods are of: what it knows of them beyond what kata tells, and what it is told. No pod ever
 * waits long for it, or fails by it: what goes wrong is reported by the implementation.
 */
export interface Cluster {
	/**
	 * The credentials with which the VM pulls the pod's images: the content of `auth.json`. Undefined when there are
	 * none, or when they cannot be had in time. Rejects with the signal's reason only.
	 */
	pullCredentials(pod: PodIdentity, signal: AbortSignal): Promise<Secret<string> | undefined>;
	/**
	 * Puts on record that the pod is to have this VM, so that somebody can delete it when this node cannot any more;
	 * also of a VM that is on record already. Resolves when that is done, or after a short while: then it goes on in
	 * the background. Rejects with the signal's reason only.
	 */
	registerVm(vm: RegisteredVm, signal: AbortSignal): Promise<void>;
	/** The VM is gone: the record is withdrawn, in the background. Another VM of the same pod stays on record. */
	unregisterVm(vm: RegisteredVm): void;
	/**
	 * Whether the pod itself still exists: the pod with its UID, not another one of its name. `unknown` without an API
	 * server, without its answer in time, and for static pods. Rejects with the signal's reason only.
	 */
	podPresence(vm: RegisteredVm, signal: AbortSignal): Promise<Presence>;
	/**
	 * These are all VMs of this node that should be on record; called again and again. What is missing is put on
	 * record, what is too much is withdrawn, in the background, whatever was refused or lost before.
	 */
	reconcile(vms: readonly RegisteredVm[]): void;
	/** Tells what happened to a pod, in the background; repetitions may be dropped. */
	recordEvent(pod: PodIdentity, event: PodEvent): void;
}

/** Daemons on the same PODS_DIR. During an update two of them run. */
export interface OtherDaemons {
	/** Whether one that began before this one may still be at work. Once false it stays so. */
	hasPredecessor(): boolean;
	/** Resolves when there is no predecessor. Rejects with the signal's reason only. */
	predecessorsEnded(signal: AbortSignal): Promise<void>;
	/** Whether one that began after this one is at work. */
	hasSuccessor(): Promise<boolean>;
}

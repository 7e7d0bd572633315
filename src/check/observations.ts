/**
 * What the adapters' probes see of the KVM host and of this node, as plain data. They judge nothing; the verdicts
 * beside this file do. Sizes are bytes.
 */

export interface SshObservation {
	readonly user: string;
	readonly host: string;
	readonly port: number;
	/** From the first packet to the end of authentication. */
	readonly durationMs: number;
	/** Why the host's key was accepted without proof; absent when it was proven. */
	readonly unproven?: string;
	/** Private keys that others than their owner may read or write. */
	readonly exposedKeys: readonly string[];
}

export interface LibvirtObservation {
	/** `QEMU`, or `TEST` for libvirt's test driver. */
	readonly driver: string;
	/** `9.0.0` */
	readonly version: string;
	readonly hostname: string;
	readonly transport: string;
	/** Of a cheap call: the median of a few. */
	readonly roundTripMs: number;
}

export interface GuestObservation {
	readonly domainType: 'kvm' | 'qemu';
	readonly machine: string;
}

/** Of IBM Secure Execution. Both texts are sentences, the reason without a full stop. */
export type SecureExecutionObservation =
	{readonly supported: true} | {readonly supported: false; readonly reason: string; readonly remedy: string};

export interface PoolObservation {
	/** libvirt's word: `dir`, `netfs`, `logical`, … */
	readonly type: string;
	readonly path?: string;
	readonly isActive: boolean;
	readonly autostarts: boolean;
	/** 0 while it is not active. */
	readonly availableBytes: bigint;
}

/** The pod VMs of this CLUSTER_ID and NODE_NAME. */
export interface PodVmsObservation {
	readonly count: number;
	/** Those that the daemon of another PODS_DIR answers for. */
	readonly foreign: ReadonlyArray<{readonly name: string; readonly podsDir: string}>;
}

export interface VolumeObservation {
	/** The volume that the alias points to; everything else is of that one. Absent when it is itself the image. */
	readonly version?: string;
	/** As libvirt has it, on which overlays are made. */
	readonly declaredFormat: 'qcow2' | 'raw';
	readonly capacityBytes: bigint;
	readonly allocatedBytes: bigint;
	/**
	 * Its format by its own first bytes, and whether it has a backing file; why no pod VM may start from it; or why
	 * they could not be read.
	 */
	readonly content:
		| {readonly format: 'qcow2' | 'raw'; readonly readsThrough: boolean}
		| {readonly unfit: string; readonly remedy: string}
		| {readonly unreadable: string};
}

export interface MemoryObservation {
	readonly totalBytes: bigint;
	/** Free, or taken by caches only. */
	readonly availableBytes: bigint;
}

export interface NetworkObservation {
	readonly isActive: boolean;
	readonly autostarts: boolean;
	/** `nat`, `route`, `bridge`, …; absent for an isolated network. */
	readonly forwardMode?: string;
	/** `192.168.122.0/24`; absent when libvirt does not manage its addresses. */
	readonly subnet?: string;
	/** An address in it that a pod VM may get; absent as the subnet is. */
	readonly vmAddress?: string;
	/** Whether its bridge waits before a new VM's port forwards. */
	readonly hasSpanningTree: boolean;
}

/** Why VMs are without one kind of protection. `reason` is a phrase without a full stop, `remedy` is sentences. */
export interface MissingProtection {
	readonly absent: 'off' | 'unavailable';
	readonly reason: string;
	readonly remedy: string;
	/** Whether the settings let no VM start without it. */
	readonly isRequired: boolean;
}

export interface NetworkProtectionObservation {
	/** Name of the network filter that new VMs get. */
	readonly filter: string | MissingProtection;
	readonly isolatedPorts: true | MissingProtection;
}

export interface RouteObservation {
	/** A prefix; `0.0.0.0/0` is the default route. */
	readonly dst: string;
	readonly gateway?: string;
	readonly dev?: string;
}

export interface ProgramsObservation {
	/** Versions by program; null for one that is missing. */
	readonly versions: Readonly<Record<string, string | null>>;
}

export interface VxlanPortObservation {
	readonly isFree: boolean;
	/** Names of VXLAN interfaces of this node on the port, other than the adaptor's. */
	readonly sharing: readonly string[];
	/** Programs that have it open, as far as that can be seen. */
	readonly programs: readonly string[];
}

/** How far the pods' tunnels are bound to their VMs. */
export interface GuardObservation {
	/** Tunnels that accept packets of their own VM only. */
	readonly bound: number;
	/** VMs that a daemon of an earlier version attached: they can still send into any tunnel of this node. */
	readonly unbound: number;
	/** Packets that were refused since the node's table of tunnels was made, usually since the node was booted. */
	readonly dropped: number;
}

export interface DirectoryObservation {
	readonly path: string;
	/** The directory itself, or the nearest above it that exists: in it the missing ones will be made. */
	readonly nearest: string;
	/** Why nothing can be written there. */
	readonly unwritable?: string;
	readonly availableBytes: bigint;
}

export type IdentityObservation =
	/** Of the daemon's own making; made at its first start. */
	| {readonly source: 'own'; readonly state: 'absent'}
	/** `reason`: why what is kept cannot be used any more. */
	| {readonly source: 'own'; readonly state: 'unusable'; readonly reason: string}
	| {readonly source: 'own' | 'files'; readonly state: 'usable'; readonly validFrom: Date; readonly validTo: Date};

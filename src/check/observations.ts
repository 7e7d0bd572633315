/**
 * What the probes observe on the KVM host and on this node, as plain data. The verdicts in this folder judge it. Sizes
 * are in bytes.
 */

import type {FileProblem} from '../core/file-error.ts';

export interface SshObservation {
	readonly user: string;
	readonly host: string;
	readonly port: number;
	/** From the first packet to the end of authentication. */
	readonly durationMs: number;
	/** Why the host key was accepted without verification; absent if it was verified. */
	readonly unproven?: string;
	/** Private keys that users other than the owner may read or write. */
	readonly exposedKeys: readonly string[];
}

export interface LibvirtObservation {
	/** `QEMU`, or `TEST` for libvirt's test driver. */
	readonly driver: string;
	/** `9.0.0` */
	readonly version: string;
	readonly hostname: string;
	readonly transport: string;
	/** Median of a few cheap calls. */
	readonly roundTripMs: number;
}

export interface GuestObservation {
	readonly domainType: 'kvm' | 'qemu';
	readonly machine: string;
}

/** Support for IBM Secure Execution. Both texts are sentences, the reason without a full stop. */
export type SecureExecutionObservation =
	{readonly supported: true} | {readonly supported: false; readonly reason: string; readonly remedy: string};

export interface PoolObservation {
	/** As libvirt names it: `dir`, `netfs`, `logical`, … */
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
	/** VMs that belong to a daemon with another PODS_DIR. */
	readonly foreign: ReadonlyArray<{readonly name: string; readonly podsDir: string}>;
}

export interface VolumeObservation {
	/** The volume that the alias points to; all other fields describe that volume. Absent if the name is no alias. */
	readonly version?: string;
	/** The format according to libvirt, which overlays use. */
	readonly declaredFormat: 'qcow2' | 'raw';
	readonly capacityBytes: bigint;
	readonly allocatedBytes: bigint;
	/**
	 * One of: the format according to the first bytes of the volume, and whether it has a backing file; the reason why
	 * no pod VM may start from it; the reason why the bytes could not be read.
	 */
	readonly content:
		| {readonly format: 'qcow2' | 'raw'; readonly hasBackingFile: boolean}
		| {readonly unfit: string; readonly remedy: string}
		| {readonly unreadable: string};
}

export interface MemoryObservation {
	readonly totalBytes: bigint;
	/** Free, or only used by caches. */
	readonly availableBytes: bigint;
}

export interface NetworkObservation {
	readonly isActive: boolean;
	readonly autostarts: boolean;
	/** `nat`, `route`, `bridge`, …; absent if the network is isolated. */
	readonly forwardMode?: string;
	/** `192.168.122.0/24`; absent if libvirt does not manage the addresses. */
	readonly subnet?: string;
	/** An address in the subnet that a pod VM may get; absent if the subnet is. */
	readonly vmAddress?: string;
	/** Whether the bridge delays the traffic of a new port (spanning tree). */
	readonly hasSpanningTree: boolean;
}

/** Why VMs are without one kind of protection. `reason` is a phrase without a full stop, `remedy` is sentences. */
export interface MissingProtection {
	readonly absent: 'off' | 'unavailable';
	readonly reason: string;
	readonly remedy: string;
	/** Whether the settings require it, so that no VM starts without it. */
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
	/** Programs that have the port open, as far as they are visible. */
	readonly programs: readonly PortUser[];
	/** Another port, which nothing on this node uses. */
	readonly freePort: number;
}

export interface PortUser {
	readonly name: string;
	readonly pid: number;
	/** Absent if it cannot be read, or is only the name. */
	readonly commandLine?: string;
}

/** How many tunnels are bound to their VMs. */
export interface GuardObservation {
	/** Tunnels that only accept packets of their own VM. */
	readonly bound: number;
	/** VMs that an earlier version attached. They can still send into any tunnel of this node. */
	readonly unbound: number;
	/** Packets dropped since the table of tunnels was created, usually since the node booted. */
	readonly dropped: number;
}

export interface DirectoryObservation {
	readonly path: string;
	/** The directory itself, or its nearest existing ancestor. */
	readonly nearest: string;
	/** Why nothing can be written there. */
	readonly unwritable?: FileProblem;
	readonly availableBytes: bigint;
}

export interface RelayProcessObservation {
	/** RELAY_PROCESS */
	readonly use: 'auto' | 'required' | 'off';
	/** Path of relay.sock. */
	readonly path: string;
	/** The number of pods that it serves; absent if it does not answer. */
	readonly pods?: number;
}

export type IdentityObservation =
	/** Created by the daemon at its first start. */
	| {readonly source: 'own'; readonly state: 'absent'}
	/** `reason`: why the stored CA is unusable. */
	| {readonly source: 'own'; readonly state: 'unusable'; readonly reason: string}
	| {readonly source: 'own' | 'files'; readonly state: 'usable'; readonly validFrom: Date; readonly validTo: Date};

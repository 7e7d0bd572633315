/** The KVM host: what is seen of it, judged. Pure. */
import {byteSize} from '../core/byte-size.ts';
import {finding, type Finding} from './finding.ts';
import type {
	GuestObservation,
	LibvirtObservation,
	MemoryObservation,
	PodVmsObservation,
	SecureExecutionObservation,
	SshObservation,
} from './observations.ts';

export function sshFinding({user, host, port, durationMs, unproven, exposedKeys}: SshObservation): Finding {
	return finding(
		`${user}@${host} port ${port} lets us in (${Math.round(durationMs)} ms)${unproven === undefined ? ', its host key is verified' : ''}`,
		unproven === undefined
			? undefined
			: {
					status: 'warning',
					text: unproven,
					remedy: 'Compare that fingerprint with "ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub" on the KVM host, put the key into known_hosts, and take no_verify and known_hosts_verify out of LIBVIRT_URI.',
				},
		exposedKeys.length === 0
			? undefined
			: {
					status: 'warning',
					text: `others than its owner have access to ${exposedKeys.join(', ')}`,
					remedy: `Run "chmod 600 ${exposedKeys.join(' ')}", or mount the secret with defaultMode 0600.`,
				},
	);
}

/** Certificates for VMs are back-dated by a day: `src/relay/identity-file.ts`. */
const backdatedSeconds = 86_400;
/** A second for the clock's own grain, the rest for the way. */
const noticeableSeconds = 5;

/**
 * VMs take their time from the KVM host when they boot, and look at certificates that this node issued.
 * @param skewSeconds host minus node; undefined when the host did not tell
 */
export function clockFinding(skewSeconds: number | undefined): Finding {
	if (skewSeconds === undefined) {
		return {status: 'skipped', text: 'not known: the account on the host runs no commands'};
	}

	const amount = Math.abs(skewSeconds);
	const direction = skewSeconds < 0 ? 'behind' : 'ahead of';
	if (amount <= noticeableSeconds) {
		return finding("the host's clock and this node's agree");
	}

	const remedy = 'Synchronise both clocks, for example with chrony: "chronyc tracking" on each tells the offset.';
	const fact = `the host's clock is ${durationText(amount)} ${direction} this node's`;
	return skewSeconds <= -backdatedSeconds
		? finding(fact, {
				status: 'failure',
				text: 'certificates that this node issues are not valid yet in its VMs',
				remedy,
			})
		: finding(fact, {status: 'warning', text: 'certificates are judged by both clocks', remedy});
}

function durationText(seconds: number): string {
	return seconds < 120
		? `${Math.round(seconds)} s`
		: seconds < 7200
			? `${Math.round(seconds / 60)} min`
			: `${Math.round(seconds / 3600)} h`;
}

/** The oldest that knows everything we ask for: `launchSecurity` of type s390-pv (libvirt, NEWS, 7.6.0). */
const oldestVersion = [7, 6, 0] as const;
/** A start of a pod VM makes up to twelve calls, most one after the other. */
const slowRoundTripMs = 100;

export function libvirtFinding({driver, version, hostname, transport, roundTripMs}: LibvirtObservation): Finding {
	const took = roundTripMs < 10 ? roundTripMs.toFixed(1) : String(Math.round(roundTripMs));
	return finding(
		`libvirt ${version} (${driver}) on ${hostname}, ${took} ms a call, by ${transport}`,
		isOlder(version)
			? {
					status: 'warning',
					text: `older than ${oldestVersion.join('.')}, with which nothing was tried`,
					remedy: 'Update libvirt on the KVM host.',
				}
			: undefined,
		driver === 'QEMU'
			? undefined
			: {
					status: 'warning',
					text: `${driver} is not the QEMU driver: no real VMs`,
					remedy: 'Name the QEMU driver in LIBVIRT_URI: qemu+ssh://HOST/system.',
				},
		roundTripMs < slowRoundTripMs
			? undefined
			: {
					status: 'warning',
					text: 'every start of a pod VM waits about twelve times that long',
					remedy: 'Look at the network between this node and the KVM host, and at the load of its libvirtd.',
				},
	);
}

function isOlder(version: string): boolean {
	const parts = version.split('.').map(Number);
	const differing = oldestVersion.findIndex((least, index) => parts[index] !== least);
	return differing !== -1 && (parts[differing] ?? 0) < (oldestVersion[differing] ?? 0);
}

export function guestFinding({domainType, machine}: GuestObservation): Finding {
	return finding(
		`runs s390x guests as ${machine} ${domainType === 'kvm' ? 'by KVM' : 'in emulation'}`,
		domainType === 'kvm'
			? undefined
			: {
					status: 'warning',
					text: 'that is slow and for tests only',
					remedy: 'Point LIBVIRT_URI at a KVM host on IBM Z or LinuxONE. If this is one: load the module kvm ("modprobe kvm"), check /dev/kvm, then restart libvirtd.',
				},
	);
}

/** @param isWanted whether pod VMs are to be confidential ones: then there are none without it */
export function secureExecutionFinding(support: SecureExecutionObservation, isWanted: boolean): Finding {
	if (support.supported) {
		return finding(
			isWanted
				? 'the host can run confidential VMs; that a VM is protected only attestation shows'
				: 'not asked for (DISABLECVM=true), though the host could',
		);
	}

	return isWanted
		? {status: 'failure', text: `the host cannot run confidential VMs: ${support.reason}`, remedy: support.remedy}
		: finding(`not asked for (DISABLECVM=true); the host could not: ${support.reason}`);
}

/** What the pod VMs that are still to come may ask for. */
export interface Demand {
	/** Pod VMs: up to the node's limit, those that run already not included. */
	readonly vms: number;
	readonly memoryMib: number;
	readonly rootDiskGib: number;
}

export function memoryFinding({totalBytes, availableBytes}: MemoryObservation, {vms, memoryMib}: Demand): Finding {
	const each = BigInt(memoryMib) * 1024n ** 2n;
	const fact = `${byteSize(availableBytes)} of ${byteSize(totalBytes)} available`;
	if (availableBytes >= each * BigInt(vms)) {
		return finding(`${fact}${enoughText(vms, each)}`);
	}

	// Memory can be overcommitted and pods may ask for less, so only the lack of what one VM takes is a failure.
	const remedy = 'Free memory on the KVM host, give it more, or lower LIBVIRT_MEMORY or PEERPODS_LIMIT_PER_NODE.';
	return finding(
		fact,
		availableBytes < each
			? {status: 'failure', text: `a pod VM takes ${byteSize(each)}`, remedy}
			: {
					status: 'warning',
					text: `enough for ${availableBytes / each} pod VMs of ${byteSize(each)}, not for ${vms} more`,
					remedy,
				},
	);
}

/** How many VMs, or directories, are named; of the others their number is told. */
const mostNamed = 5;

/** Two daemons with one CLUSTER_ID and NODE_NAME: neither deletes the other's VMs, and nobody else does. */
export function podVmsFinding({count, foreign}: PodVmsObservation): Finding {
	const directories = [...new Set(foreign.map(({podsDir}) => (podsDir === '' ? '(unknown)' : podsDir)))].sort();
	return finding(
		count === 1 ? '1 pod VM of this node' : `${count} pod VMs of this node`,
		foreign.length === 0
			? undefined
			: {
					status: 'warning',
					text: `${foreign.length} of them ${foreign.length === 1 ? 'belongs' : 'belong'} to another daemon, with PODS_DIR ${listText(directories)}: ${listText(foreign.map(({name}) => name))}`,
					remedy:
						'Only one daemon may have a CLUSTER_ID and NODE_NAME. If that daemon runs, stop it or give it a NODE_NAME of its own; if PODS_DIR of this one was changed, change it back. ' +
						'To delete such a VM by hand, run "virsh destroy NAME" and "virsh undefine NAME --remove-all-storage" on the KVM host.',
				},
	);
}

function listText(names: readonly string[]): string {
	const [named, others] = [names.slice(0, mostNamed), names.length - mostNamed];
	return `${named.join(', ')}${others > 0 ? ` and ${others} more` : ''}`;
}

/** @param each bytes of one */
export function enoughText(vms: number, each: bigint): string {
	return vms === 0
		? ', and no more pod VMs are to come'
		: `, enough for ${vms === 1 ? 'a pod VM' : `${vms} more pod VMs`} of ${byteSize(each)}`;
}

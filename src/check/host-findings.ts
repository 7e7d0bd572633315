/** Turns observations of the KVM host into findings. Pure. */
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
		`${user}@${host} port ${port}: login ok (${Math.round(durationMs)} ms)${unproven === undefined ? ', host key verified' : ''}`,
		unproven === undefined
			? undefined
			: {
					status: 'warning',
					text: unproven,
					remedy: 'Compare that fingerprint with "ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub" on the KVM host, put the key into known_hosts, and remove no_verify and known_hosts_verify from LIBVIRT_URI.',
				},
		exposedKeys.length === 0
			? undefined
			: {
					status: 'warning',
					text: `users other than the owner can access ${exposedKeys.join(', ')}`,
					remedy: `Run "chmod 600 ${exposedKeys.join(' ')}", or mount the secret with defaultMode 0600.`,
				},
	);
}

/** Certificates for VMs are back-dated by a day: `src/relay/identity-file.ts`. */
const backdatedSeconds = 86_400;
/** One second for the resolution of the clock, the rest for network latency. */
const noticeableSeconds = 5;

/**
 * VMs take their time from the KVM host when they boot, and verify certificates that this node issued.
 * @param skewSeconds host minus node; undefined if the time of the host is unknown
 */
export function clockFinding(skewSeconds: number | undefined): Finding {
	if (skewSeconds === undefined) {
		return {status: 'skipped', text: 'unknown: the account on the host cannot run commands'};
	}

	const amount = Math.abs(skewSeconds);
	const direction = skewSeconds < 0 ? 'behind' : 'ahead of';
	if (amount <= noticeableSeconds) {
		return finding('the clocks of the host and this node agree');
	}

	const remedy = 'Synchronise both clocks, for example with chrony: "chronyc tracking" shows the offset of each.';
	const fact = `the clock of the host is ${durationText(amount)} ${direction} the clock of this node`;
	return skewSeconds <= -backdatedSeconds
		? finding(fact, {
				status: 'failure',
				text: 'VMs refuse new certificates of this node because these are not valid yet',
				remedy,
			})
		: finding(fact, {status: 'warning', text: 'certificates are verified with both clocks', remedy});
}

function durationText(seconds: number): string {
	return seconds < 120
		? `${Math.round(seconds)} s`
		: seconds < 7200
			? `${Math.round(seconds / 60)} min`
			: `${Math.round(seconds / 3600)} h`;
}

/** The oldest version with all required features: `launchSecurity` of type s390-pv (libvirt, NEWS, 7.6.0). */
const oldestVersion = [7, 6, 0] as const;
/** A start of a pod VM makes up to twelve calls, mostly one after the other. */
const slowRoundTripMs = 100;

export function libvirtFinding({driver, version, hostname, transport, roundTripMs}: LibvirtObservation): Finding {
	const took = roundTripMs < 10 ? roundTripMs.toFixed(1) : String(Math.round(roundTripMs));
	return finding(
		`libvirt ${version} (${driver}) on ${hostname}, ${took} ms per call, over ${transport}`,
		isOlder(version)
			? {
					status: 'warning',
					text: `versions older than ${oldestVersion.join('.')} are not tested`,
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
					text: 'every start of a pod VM takes about twelve such calls',
					remedy: 'Check the network between this node and the KVM host, and the load of libvirtd.',
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
		`runs s390x guests (${machine}) with ${domainType === 'kvm' ? 'KVM' : 'emulation'}`,
		domainType === 'kvm'
			? undefined
			: {
					status: 'warning',
					text: 'slow, for tests only',
					remedy: 'Point LIBVIRT_URI at a KVM host on IBM Z or LinuxONE. If LIBVIRT_URI already points to such a host: load the module kvm ("modprobe kvm"), check /dev/kvm, then restart libvirtd.',
				},
	);
}

/** @param isWanted whether pod VMs must be confidential */
export function secureExecutionFinding(support: SecureExecutionObservation, isWanted: boolean): Finding {
	if (support.supported) {
		return finding(
			isWanted
				? 'the host can run confidential VMs; only attestation proves that a VM is protected'
				: 'turned off (DISABLECVM=true); the host supports it',
		);
	}

	return isWanted
		? {status: 'failure', text: `the host cannot run confidential VMs: ${support.reason}`, remedy: support.remedy}
		: finding(`turned off (DISABLECVM=true); the host does not support it: ${support.reason}`);
}

/** Resources for pod VMs that this node may still start. */
export interface Demand {
	/** Number of pod VMs up to the limit of the node, without the running ones. */
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

	// Memory can be overcommitted and pods may request less. So it is only a failure if one VM does not fit.
	const remedy = 'Free or add memory on the KVM host, or lower LIBVIRT_MEMORY or PEERPODS_LIMIT_PER_NODE.';
	return finding(
		fact,
		availableBytes < each
			? {status: 'failure', text: `one pod VM needs ${byteSize(each)}`, remedy}
			: {
					status: 'warning',
					text: `enough for ${availableBytes / each} pod VMs of ${byteSize(each)}, not for ${vms} more`,
					remedy,
				},
	);
}

/** Maximum number of VMs or directories to name. Others are only counted. */
const mostNamed = 5;

/**
 * VMs of another PODS_DIR mean that two daemons share CLUSTER_ID and NODE_NAME. Neither deletes the VMs of the other.
 */
export function podVmsFinding({count, foreign}: PodVmsObservation): Finding {
	const directories = [...new Set(foreign.map(({podsDir}) => (podsDir === '' ? '(unknown)' : podsDir)))].sort();
	return finding(
		count === 1 ? '1 pod VM of this node' : `${count} pod VMs of this node`,
		foreign.length === 0
			? undefined
			: {
					status: 'warning',
					text: `${foreign.length} of them ${foreign.length === 1 ? 'belongs' : 'belong'} to another daemon with PODS_DIR ${listText(directories)}: ${listText(foreign.map(({name}) => name))}`,
					remedy:
						'Each pair of CLUSTER_ID and NODE_NAME may be used by only one daemon. If the other daemon runs, stop it or change its NODE_NAME. If PODS_DIR of this daemon was changed, change it back. ' +
						'To delete such a VM by hand, run "virsh destroy NAME" and "virsh undefine NAME --remove-all-storage" on the KVM host.',
				},
	);
}

function listText(names: readonly string[]): string {
	const [named, others] = [names.slice(0, mostNamed), names.length - mostNamed];
	return `${named.join(', ')}${others > 0 ? ` and ${others} more` : ''}`;
}

/** @param each bytes per VM */
export function enoughText(vms: number, each: bigint): string {
	return vms === 0
		? '; the limit of pod VMs is reached'
		: `, enough for ${vms === 1 ? 'a pod VM' : `${vms} more pod VMs`} of ${byteSize(each)}`;
}

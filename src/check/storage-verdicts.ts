/** Pool, base volume and space on the KVM host, judged. Pure. */
import {finding, sizeText, type Finding, type Problem} from './finding.ts';
import {enoughText, type Demand} from './host-verdicts.ts';
import {imageKind} from './image-header.ts';
import type {PoolObservation, VolumeObservation} from './observations.ts';

/** Those in which a volume is a file: only there can an overlay be made upon another volume. */
const supportedTypes = ['dir', 'fs', 'netfs'];

export function poolFinding(pool: string, {type, path, isActive, autostarts}: PoolObservation): Finding {
	return finding(
		`pool ${pool} of type ${type}${path === undefined ? '' : ` at ${path}`}${isActive ? ', active' : ''}`,
		supportedTypes.includes(type)
			? undefined
			: {
					status: 'failure',
					text: `its type is not supported: a pod VM's disk is a qcow2 file upon the base volume`,
					remedy: `Set LIBVIRT_POOL to a pool of type ${supportedTypes.join(', ')}.`,
				},
		isActive
			? undefined
			: {status: 'failure', text: 'it is not active', remedy: `Run "virsh pool-start ${pool}" on the KVM host.`},
		autostarts
			? undefined
			: {
					status: 'warning',
					text: 'it does not start with the host',
					remedy: `Run "virsh pool-autostart ${pool}" on the KVM host.`,
				},
	);
}

const pushImage = 'Push the pod VM image with "cloud-api-adaptor image push".';
/** A qcow2 volume that was created and never written to has its tables, which are less than this. */
const emptyQcow2Bytes = 1024n * 1024n;

export function baseVolumeFinding(
	pool: string,
	volume: string,
	{version, declaredFormat, capacityBytes, allocatedBytes, header}: VolumeObservation,
): Finding {
	const fact = `${volume}${version === undefined ? '' : `, which is ${version}`}, ${declaredFormat} of ${sizeText(capacityBytes)}, ${sizeText(allocatedBytes)} stored`;
	if ('unreadable' in header) {
		return finding(fact, {
			status: 'warning',
			text: `its first bytes could not be read (${header.unreadable}), so its format is what libvirt says`,
			remedy: `Check it with "qemu-img info" on the KVM host.`,
		});
	}

	return finding(fact, contentProblem(pool, volume, declaredFormat, allocatedBytes, header));
}

function contentProblem(
	pool: string,
	volume: string,
	declaredFormat: 'qcow2' | 'raw',
	allocatedBytes: bigint,
	header: Uint8Array,
): Problem | undefined {
	const kind = imageKind(header);
	switch (kind.format) {
		case 'foreign': {
			return {
				status: 'failure',
				text: `its content is ${kind.name}, which no VM boots from`,
				remedy: `Unpack it, or convert it with "qemu-img convert -O qcow2". ${pushImage}`,
			};
		}

		case 'zeros': {
			return {
				status: 'failure',
				text: 'it begins with nothing but zeros: nothing was uploaded to it',
				remedy: pushImage,
			};
		}

		case 'qcow2': {
			if (declaredFormat === 'raw') {
				return {
					status: 'failure',
					text: 'its content is qcow2: VMs would see that file instead of the disk in it',
					remedy: `Run "virsh pool-refresh ${pool}" on the KVM host, so that libvirt looks at it anew, or make a new one. ${pushImage}`,
				};
			}

			if (kind.hasBackingFile) {
				return {
					status: 'warning',
					text: 'it is itself an overlay on another file, which must stay where it is',
					remedy: `Flatten it with "qemu-img convert -O qcow2 ${volume} …". ${pushImage}`,
				};
			}

			return allocatedBytes >= emptyQcow2Bytes
				? undefined
				: {status: 'failure', text: 'nothing was uploaded to it', remedy: pushImage};
		}

		case 'raw': {
			return declaredFormat === 'raw'
				? undefined
				: {
						status: 'failure',
						text: 'its content is not qcow2: VMs would not start',
						remedy: `Run "virsh pool-refresh ${pool}" on the KVM host, so that libvirt looks at it anew, or make a new one. ${pushImage}`,
					};
		}
	}
}

const gib = 1024n ** 3n;

/** Overlays grow as they are written, so that they could all be full is worth a warning only. */
export function diskFinding(
	{availableBytes}: Pick<PoolObservation, 'availableBytes'>,
	{vms, rootDiskGib}: Demand,
): Finding {
	const each = BigInt(rootDiskGib) * gib;
	const fact = `${sizeText(availableBytes)} available in the pool`;
	const remedy =
		'Remove volumes that nobody needs from the pool, give it more space, or lower LIBVIRT_ROOT_DISK_SIZE or PEERPODS_LIMIT_PER_NODE.';
	// What a pod VM writes before its pod does anything: logs and container images.
	const least = each < gib ? each : gib;
	if (vms === 0 || availableBytes >= each * BigInt(vms)) {
		return finding(`${fact}${enoughText(vms, each)}`);
	}

	return availableBytes < least
		? finding(fact, {status: 'failure', text: `a pod VM soon needs ${sizeText(least)}`, remedy})
		: finding(fact, {
				status: 'warning',
				text: `the disks of ${vms} more pod VMs grow to ${sizeText(each)} each`,
				remedy,
			});
}

/** Turns observations of the pool, the base volume and free space on the KVM host into findings. Pure. */
import {byteSize} from '../core/byte-size.ts';
import {finding, type Finding} from './finding.ts';
import {enoughText, type Demand} from './host-findings.ts';
import type {PoolObservation, VolumeObservation} from './observations.ts';

/** Pool types whose volumes are files. Only these support overlays on another volume. */
const supportedTypes = ['dir', 'fs', 'netfs'];

export function poolFinding(pool: string, {type, path, isActive, autostarts}: PoolObservation): Finding {
	return finding(
		`pool ${pool} of type ${type}${path === undefined ? '' : ` at ${path}`}${isActive ? ', active' : ''}`,
		supportedTypes.includes(type)
			? undefined
			: {
					status: 'failure',
					text: `its type is not supported: the disk of a pod VM is a qcow2 file on top of the base volume`,
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

export function baseVolumeFinding(
	pool: string,
	volume: string,
	{version, declaredFormat, capacityBytes, allocatedBytes, content}: VolumeObservation,
): Finding {
	const fact = `${volume}${version === undefined ? '' : `, an alias of ${version}`}, ${declaredFormat} of ${byteSize(capacityBytes)}, ${byteSize(allocatedBytes)} stored`;
	if ('unreadable' in content) {
		return finding(fact, {
			status: 'warning',
			text: `its first bytes could not be read (${content.unreadable}), so the format of libvirt is unverified`,
			remedy: `Check it with "qemu-img info" on the KVM host.`,
		});
	}

	if ('unfit' in content) {
		return finding(fact, {status: 'failure', text: content.unfit, remedy: `${content.remedy} ${pushImage}`});
	}

	return finding(
		fact,
		content.format === declaredFormat
			? undefined
			: {
					status: 'failure',
					text:
						content.format === 'qcow2'
							? 'its content is qcow2: VMs would see the qcow2 file instead of the disk inside'
							: 'its content is not qcow2: VMs would not start',
					remedy: `Run "virsh pool-refresh ${pool}" on the KVM host, so that libvirt reads the volume again, or create a new volume. ${pushImage}`,
				},
		content.hasBackingFile
			? {
					status: 'warning',
					text: 'it has a backing file, which is not checked; as long as it is LIBVIRT_VOL_NAME, pods can use it; otherwise, pods that select it by annotation are refused',
					remedy: `Flatten it with "qemu-img convert -O qcow2". ${pushImage}`,
				}
			: undefined,
	);
}

const gib = 1024n ** 3n;

/** Overlays grow as they are written, so it is only a warning if they could fill the pool. */
export function diskFinding(
	{availableBytes}: Pick<PoolObservation, 'availableBytes'>,
	{vms, rootDiskGib}: Demand,
): Finding {
	const each = BigInt(rootDiskGib) * gib;
	const fact = `${byteSize(availableBytes)} available in the pool`;
	const remedy =
		'Remove unused volumes from the pool, give it more space, or lower LIBVIRT_ROOT_DISK_SIZE or PEERPODS_LIMIT_PER_NODE.';
	// A pod VM writes logs and container images before its pod writes anything.
	const least = each < gib ? each : gib;
	if (vms === 0 || availableBytes >= each * BigInt(vms)) {
		return finding(`${fact}${enoughText(vms, each)}`);
	}

	return availableBytes < least
		? finding(fact, {status: 'failure', text: `a pod VM soon needs ${byteSize(least)}`, remedy})
		: finding(fact, {
				status: 'warning',
				text: `the disks of ${vms} more pod VMs can grow to ${byteSize(each)} each`,
				remedy,
			});
}

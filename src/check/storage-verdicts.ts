/** Pool, base volume and space on the KVM host, judged. Pure. */
import {byteSize} from '../core/byte-size.ts';
import {finding, type Finding} from './finding.ts';
import {enoughText, type Demand} from './host-verdicts.ts';
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

export function baseVolumeFinding(
	pool: string,
	volume: string,
	{version, declaredFormat, capacityBytes, allocatedBytes, content}: VolumeObservation,
): Finding {
	const fact = `${volume}${version === undefined ? '' : `, which is ${version}`}, ${declaredFormat} of ${byteSize(capacityBytes)}, ${byteSize(allocatedBytes)} stored`;
	if ('unreadable' in content) {
		return finding(fact, {
			status: 'warning',
			text: `its first bytes could not be read (${content.unreadable}), so its format is what libvirt says`,
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
							? 'its content is qcow2: VMs would see that file instead of the disk in it'
							: 'its content is not qcow2: VMs would not start',
					remedy: `Run "virsh pool-refresh ${pool}" on the KVM host, so that libvirt looks at it anew, or make a new one. ${pushImage}`,
				},
		content.readsThrough
			? {
					status: 'warning',
					text: 'it reads through to another file (a backing file), which is not checked; pods that choose this volume by annotation are refused it when LIBVIRT_VOL_NAME is another',
					remedy: `Make it whole with "qemu-img convert -O qcow2". ${pushImage}`,
				}
			: undefined,
	);
}

const gib = 1024n ** 3n;

/** Overlays grow as they are written, so that they could all be full is worth a warning only. */
export function diskFinding(
	{availableBytes}: Pick<PoolObservation, 'availableBytes'>,
	{vms, rootDiskGib}: Demand,
): Finding {
	const each = BigInt(rootDiskGib) * gib;
	const fact = `${byteSize(availableBytes)} available in the pool`;
	const remedy =
		'Remove volumes that nobody needs from the pool, give it more space, or lower LIBVIRT_ROOT_DISK_SIZE or PEERPODS_LIMIT_PER_NODE.';
	// What a pod VM writes before its pod does anything: logs and container images.
	const least = each < gib ? each : gib;
	if (vms === 0 || availableBytes >= each * BigInt(vms)) {
		return finding(`${fact}${enoughText(vms, each)}`);
	}

	return availableBytes < least
		? finding(fact, {status: 'failure', text: `a pod VM soon needs ${byteSize(least)}`, remedy})
		: finding(fact, {
				status: 'warning',
				text: `the disks of ${vms} more pod VMs grow to ${byteSize(each)} each`,
				remedy,
			});
}

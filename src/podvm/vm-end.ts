/**
 * How a VM ended, for operators: from a lifecycle event, or from the state if the event was lost. Pure. Numbers:
 * libvirt, include/libvirt/libvirt-domain.h.
 */
import type {LifecycleEvent} from '../libvirt/wire/events.ts';
import {PodVmEndedError, type VmEnd} from '../sandbox/vm-ended.ts';

const ends = {
	panicked: {
		how: "the guest's kernel panicked",
		remedy: 'Check that the image is for s390x and that the VM has enough memory for it. For details, start a VM with the same image on the KVM host and read its console: "virsh start --console".',
	},
	/**
	 * After its restart, libvirtd cannot distinguish these causes (seen with libvirt 9.0 after libvirtd and QEMU were
	 * killed).
	 */
	crashed: {
		how: "the guest's kernel panicked, or QEMU ended while libvirtd did not run, for example because the host was rebooted",
		remedy: 'See /var/log/libvirt/qemu/<instanceName>.log on the KVM host, and check whether the host was rebooted.',
	},
	failed: {
		how: 'QEMU failed or was killed',
		remedy: 'See /var/log/libvirt/qemu/<instanceName>.log on the KVM host, and its kernel\'s log for "Out of memory".',
	},
	shutdown: {
		how: 'the guest shut itself down or restarted',
		remedy: 'A service in the image caused this: check that the image is a pod VM image, and that this version supports its generation.',
	},
	destroyed: {
		how: 'somebody stopped it on the KVM host',
		remedy: 'The log of libvirtd on the KVM host shows who destroyed it.',
	},
	stored: {
		how: 'somebody saved, reverted or migrated it on the KVM host',
		remedy: 'Do not change domains whose names start with podvm-.',
	},
	diskError: {
		how: 'it was paused because its disk cannot be read or written',
		remedy: 'On the KVM host, check the free space with "virsh pool-info", and check the kernel log for storage errors.',
	},
	gone: {
		how: 'its domain no longer exists',
		remedy: 'Somebody undefined it on the KVM host. Delete the pod, so that it is created again.',
		isRemoved: true,
	},
	unknown: {how: 'it is no longer running', remedy: 'See /var/log/libvirt/qemu/<instanceName>.log on the KVM host.'},
} satisfies Record<string, VmEnd>;

/** Undefined for events after which it may still run; undefining a running domain does not end it. */
export function endOfEvent({domain, name, event, detail, stopped}: LifecycleEvent): PodVmEndedError | undefined {
	const end =
		name === 'crashed'
			? ends.panicked
			: name === 'suspended'
				? suspendedForDiskError(detail)
				: name === 'stopped'
					? endOfStopped[stopped ?? 'unknown']
					: undefined;
	return end === undefined ? undefined : new PodVmEndedError(domain.name, end, {event, detail});
}

/** VIR_DOMAIN_EVENT_SUSPENDED_IOERROR */
function suspendedForDiskError(detail: number): VmEnd | undefined {
	return detail === 2 ? ends.diskError : undefined;
}

const endOfStopped: Readonly<Record<NonNullable<LifecycleEvent['stopped']> | 'unknown', VmEnd>> = {
	shutdown: ends.shutdown,
	destroyed: ends.destroyed,
	crashed: ends.panicked,
	migrated: ends.stored,
	saved: ends.stored,
	failed: ends.failed,
	'from-snapshot': ends.stored,
	unknown: ends.unknown,
};

const [pausedState, shutoffState, crashedState] = [3, 5, 6];
const pausedForDiskError = 5;

/** In the order of virDomainShutoffReason. */
const endOfShutoff: readonly VmEnd[] = [
	ends.unknown,
	ends.shutdown,
	ends.destroyed,
	ends.crashed,
	ends.stored,
	ends.stored,
	ends.failed,
	ends.stored,
	ends.failed,
];

/** @param state answer of DOMAIN_GET_STATE, undefined if there is no such domain */
export function endOfState(
	instanceName: string,
	state: {readonly state: number; readonly reason: number} | undefined,
): PodVmEndedError | undefined {
	if (state === undefined) {
		return new PodVmEndedError(instanceName, ends.gone, {});
	}

	const end =
		state.state === crashedState
			? ends.panicked
			: state.state === shutoffState
				? (endOfShutoff[state.reason] ?? ends.unknown)
				: state.state === pausedState && state.reason === pausedForDiskError
					? ends.diskError
					: undefined;
	return end === undefined ? undefined : new PodVmEndedError(instanceName, end, {...state});
}

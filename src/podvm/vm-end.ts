/**
 * How a VM ended, for operators: from a lifecycle event, or from the state if the event was lost. Pure. Numbers:
 * libvirt, include/libvirt/libvirt-domain.h.
 */
import type {LifecycleEvent} from '../libvirt/wire/events.ts';
import {PodVmEndedError, type VmEnd} from '../sandbox/vm-ended.ts';

const ends = {
	panicked: {
		how: "the guest's kernel panicked",
		remedy: 'Check that the image is for s390x and fits its memory; the console says more: "virsh start --console" of a VM with the same image on the KVM host.',
	},
	/**
	 * After a restart, libvirtd does not know more (seen with libvirt 9.0 after libvirtd and QEMU of a host were
	 * killed).
	 */
	crashed: {
		how: "the guest's kernel panicked, or QEMU ended while libvirtd did not run, as in a reboot of the host",
		remedy: 'See /var/log/libvirt/qemu/<instanceName>.log on the KVM host, and whether it has rebooted.',
	},
	failed: {
		how: 'QEMU failed or was killed',
		remedy: 'See /var/log/libvirt/qemu/<instanceName>.log on the KVM host, and its kernel\'s log for "Out of memory".',
	},
	shutdown: {
		how: 'the guest shut itself down or restarted',
		remedy: "The image's services decided so: check that it is a pod VM image, and of the generation that this version supports.",
	},
	destroyed: {
		how: 'somebody stopped it on the KVM host',
		remedy: "See libvirtd's log on the KVM host for who destroyed it.",
	},
	stored: {
		how: 'somebody saved, reverted or migrated it on the KVM host',
		remedy: 'Leave the domains whose names start with podvm- alone.',
	},
	diskError: {
		how: 'it was paused because its disk cannot be read or written',
		remedy: 'Look for free space with "virsh pool-info" on the KVM host, and for errors of its storage in the kernel\'s log.',
	},
	gone: {
		how: 'its domain does not exist any more',
		remedy: 'Somebody undefined it on the KVM host; the pod has to be made anew.',
		isRemoved: true,
	},
	unknown: {how: 'it does not run any more', remedy: 'See /var/log/libvirt/qemu/<instanceName>.log on the KVM host.'},
} satisfies Record<string, VmEnd>;

/** Undefined for events after which it may still run; undefining alone does not end a running domain. */
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

/**
 * Whether the KVM host can run guests under IBM Secure Execution, according to libvirt. The query changes nothing on
 * the host. Whether a guest *is* protected cannot be determined here: an image that was not built for it boots
 * unprotected. Only attestation proves it.
 */
import {AdaptorError} from '../core/errors.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {child, children, readXml, type XmlElement} from '../libvirt/xml.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';

export type SecureExecutionSupport =
	| {readonly supported: true}
	/** Both are sentences, the reason without a full stop. */
	| {readonly supported: false; readonly reason: string; readonly remedy: string};

/**
 * The first libvirt with `<launchSecurity type='s390-pv'/>` (libvirt, docs/formatdomain, "Launch Security"), in its own
 * numbering.
 */
const firstVersion = 7_006_000n;

/** libvirt, docs/kbase/s390_protected_virt, "Host Requirements". */
const remedies = {
	machine:
		'Secure Execution needs an IBM z15 or LinuxONE III, or newer: use another KVM host, or set DISABLECVM=true to run ordinary VMs.',
	kernel:
		'On the KVM host, boot the kernel with prot_virt=1; then /sys/firmware/uv/prot_virt_host holds 1. ' +
		'The LPAR must have the feature (z15, LinuxONE III or newer): "grep -w 158 /proc/cpuinfo" finds it. Restart libvirt afterwards.',
	qemu: 'On the KVM host, install QEMU 6.0 and libvirt 7.6 or newer, and restart libvirt so that it detects their new versions.',
	libvirt: 'Update libvirt on the KVM host: it supports Secure Execution since version 7.6.',
	kvm: 'Use a KVM host whose kernel offers KVM (/dev/kvm): Secure Execution cannot be emulated.',
};

/**
 * @param domainCapabilities answer of CONNECT_GET_DOMAIN_CAPABILITIES for s390x (libvirt, docs/formatdomaincaps)
 * @param libvirtVersion major * 1,000,000 + minor * 1,000 + release
 */
export function secureExecutionSupport(domainCapabilities: string, libvirtVersion: bigint): SecureExecutionSupport {
	const capabilities = readXml(domainCapabilities);
	const no = (reason: string, remedy: keyof typeof remedies): SecureExecutionSupport => ({
		supported: false,
		reason,
		remedy: remedies[remedy],
	});
	if (libvirtVersion < firstVersion) {
		return no('its libvirt is older than 7.6', 'libvirt');
	}

	const hostModel = children(child(capabilities, 'cpu'), 'mode').find(
		({attributes}) => attributes['name'] === 'host-model' && attributes['supported'] === 'yes',
	);
	// The facility with which a guest becomes protected; KVM offers it if the ultravisor is in use.
	const hasUnpack = children(hostModel, 'feature').some(
		({attributes}) => attributes['name'] === 'unpack' && attributes['policy'] === 'require',
	);
	const said = saysSupported(child(capabilities, 'features'));
	if (said === true || (said === undefined && hasUnpack)) {
		return {supported: true};
	}

	if (child(capabilities, 'domain')?.text !== 'kvm') {
		return no('it has no KVM for s390x', 'kvm');
	}

	const model = child(hostModel, 'model')?.text;
	return model !== undefined && isBeforeZ15(model)
		? no(`its machine is too old (CPU model ${model})`, 'machine')
		: hasUnpack
			? no('its kernel supports Secure Execution, but its QEMU or libvirt does not', 'qemu')
			: no('its kernel does not support Secure Execution', 'kernel');
}

/**
 * Two XML elements can report the support. Depending on its version, libvirt reports none of them (before `s390-pv`),
 * one, or both.
 */
function saysSupported(features: XmlElement | undefined): boolean | undefined {
	const kinds = child(features, 'launchSecurity');
	const values = children(kinds, 'enum')
		.filter(({attributes}) => attributes['name'] === 'sectype')
		.flatMap(each => children(each, 'value'));
	const feature = child(features, 's390-pv')?.attributes['supported'];
	return values.some(({text}) => text === 's390-pv') || feature === 'yes'
		? true
		: feature === undefined && kinds === undefined
			? undefined
			: false;
}

/**
 * In QEMU, machines up to z14 have the name of the product, and those from z15 on `gen15a` etc.
 * (target/s390x/cpu_models.c).
 */
function isBeforeZ15(model: string): boolean {
	return /^z\d|^z[EB]C/.test(model);
}

/** Asks the host. @throws as `LibvirtSession.call` */
export async function readSecureExecutionSupport(
	session: Pick<LibvirtCalls, 'call'>,
	{emulator, machine, domainType}: {readonly emulator: string; readonly machine: string; readonly domainType: string},
	signal: AbortSignal,
): Promise<SecureExecutionSupport> {
	const [{capabilities}, {libVer}] = await Promise.all([
		session.call(
			procedures.connectGetDomainCapabilities,
			{emulatorbin: emulator, arch: 's390x', machine, virttype: domainType, flags: 0},
			signal,
		),
		session.call(procedures.connectGetLibVersion, undefined, signal),
	]);
	return secureExecutionSupport(capabilities, libVer);
}

/** The error of a start: an ordinary VM never replaces a confidential one. */
export function secureExecutionUnavailable({
	reason,
	remedy,
}: Extract<SecureExecutionSupport, {readonly supported: false}>): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		reason: 'SecureExecutionUnavailable',
		what: `The KVM host cannot run confidential VMs (IBM Secure Execution): ${reason}`,
		remedy,
	});
}

/**
 * The libvirt domain of a pod VM, as XML. Pure: the same spec gives the same text. Reference: libvirt,
 * docs/formatdomain; IBM, "Introducing IBM Secure Execution for Linux", which asks for iommu on every virtio device.
 *
 * Left out on purpose: <rng> (Secure Execution images blacklist virtio_rng; ordinary guests have the CPU's own), a
 * balloon (fenced under Secure Execution), a graphics device, and <panic> (libvirt adds s390's own).
 */
import {create} from 'xmlbuilder2';
import type {HostSupport} from './host-support.ts';
import {appendMetadata, type PodVmMetadata} from './metadata.ts';
import {xmlText} from '../libvirt/xml.ts';

export interface DomainSpec {
	readonly name: string;
	/** Textual. */
	readonly uuid: string;
	readonly mac: string;
	readonly vcpus: number;
	/** Host CPUs that the guest may run on, in libvirt's syntax (`0-3,^2`). */
	readonly cpuset?: string;
	readonly memoryMib: number;
	readonly network: string;
	readonly host: HostSupport;
	readonly launchSecurity?: 's390-pv';
	/** Names the pool and the volumes of the disks as well. */
	readonly metadata: PodVmMetadata;
}

export function domainXml({
	name,
	uuid,
	mac,
	vcpus,
	cpuset,
	memoryMib,
	network,
	host,
	launchSecurity,
	metadata,
}: DomainSpec): string {
	const domain = create().ele('domain', {type: host.domainType});
	domain.ele('name').txt(xmlText('name', name));
	domain.ele('uuid').txt(uuid);
	appendMetadata(domain, metadata);
	domain.ele('memory', {unit: 'MiB'}).txt(String(memoryMib));
	domain
		.ele('vcpu', {placement: 'static', ...(cpuset === undefined ? {} : {cpuset: xmlText('cpuset', cpuset)})})
		.txt(String(vcpus));
	domain
		.ele('os')
		.ele('type', {arch: 's390x', machine: xmlText('machine', host.machine)})
		.txt('hvm');
	if (host.domainType === 'kvm') {
		// Includes the `unpack` facility where the host has it. Emulation has no host model; QEMU's default boots
		// there.
		domain.ele('cpu', {mode: 'host-model'});
	}

	domain.ele('clock', {offset: 'utc'});
	// A pod VM that ended is never brought back: the shim has lost its agent, and the pod is made anew.
	for (const happening of ['poweroff', 'reboot', 'crash']) {
		domain.ele(`on_${happening}`).txt('destroy');
	}

	const devices = domain.ele('devices');
	devices.ele('emulator').txt(xmlText('emulator', host.emulator));
	devices
		.ele('disk', {type: 'volume', device: 'disk'})
		.ele('driver', {name: 'qemu', type: 'qcow2', iommu: 'on'})
		.up()
		.ele('source', {pool: xmlText('pool', metadata.pool), volume: xmlText('root', metadata.rootVolume)})
		.up()
		.ele('target', {dev: 'vda', bus: 'virtio'})
		.up()
		.ele('boot', {order: '1'});
	devices
		.ele('disk', {type: 'volume', device: 'disk'})
		.ele('driver', {name: 'qemu', type: 'raw', iommu: 'on'})
		.up()
		.ele('source', {pool: xmlText('pool', metadata.pool), volume: xmlText('cidata', metadata.cidataVolume)})
		.up()
		.ele('target', {dev: 'vdb', bus: 'virtio'})
		.up()
		.ele('readonly');
	devices
		.ele('interface', {type: 'network'})
		.ele('mac', {address: mac})
		.up()
		.ele('source', {network: xmlText('network', network)})
		.up()
		.ele('model', {type: 'virtio'})
		.up()
		.ele('driver', {iommu: 'on'});
	devices.ele('console', {type: 'pty'}).ele('target', {type: 'sclp', port: '0'});
	devices.ele('memballoon', {model: 'none'});
	if (launchSecurity !== undefined) {
		domain.ele('launchSecurity', {type: launchSecurity});
	}

	return domain.end({headless: true, prettyPrint: true});
}

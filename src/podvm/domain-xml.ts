/**
 * The libvirt domain of a pod VM, as XML. Pure: the same spec gives the same text. Reference: libvirt,
 * docs/formatdomain; IBM, "Introducing IBM Secure Execution for Linux", which asks for iommu on every virtio device.
 *
 * Omitted on purpose: <rng> (Secure Execution images block virtio_rng; ordinary guests use the random number generator
 * of the CPU), a balloon (blocked under Secure Execution), a graphics device, and <panic> (libvirt adds the device of
 * s390 itself).
 */
import {create} from 'xmlbuilder2';
import type {HostSupport} from './host-capabilities.ts';
import {appendMetadata, type PodVmMetadata} from './metadata.ts';
import {isAbsent, type NetworkProtection} from './network-protection.ts';
import {xmlText} from '../libvirt/xml.ts';

export interface DomainSpec {
	readonly name: string;
	/** As text. */
	readonly uuid: string;
	readonly mac: string;
	readonly vcpus: number;
	/** Host CPUs of the guest, in the syntax of libvirt (`0-3,^2`). */
	readonly cpuset?: string;
	readonly memoryMib: number;
	readonly network: string;
	readonly host: HostSupport;
	readonly protection: NetworkProtection;
	readonly launchSecurity?: 's390-pv';
	/** Also the names of the pool and the volumes of the disks. */
	readonly metadata: PodVmMetadata;
}

/**
 * The interface of the VM, to update the running domain.
 * @param address the only address that its network filter allows
 */
export function interfaceXml(spec: InterfaceSpec, address: string): string {
	return networkInterface(spec, address).end({headless: true});
}

export type InterfaceSpec = Pick<DomainSpec, 'mac' | 'network' | 'protection'>;

function networkInterface(
	{mac, network, protection: {filter, isolation}}: InterfaceSpec,
	address?: string,
): ReturnType<typeof create> {
	const element = create().ele('interface', {type: 'network'});
	element
		.ele('mac', {address: mac})
		.up()
		.ele('source', {network: xmlText('network', network)})
		.up()
		.ele('model', {type: 'virtio'})
		.up()
		.ele('driver', {iommu: 'on'});
	if (isolation === 'on') {
		element.ele('port', {isolated: 'yes'});
	}

	if (!isAbsent(filter)) {
		const {name, bootName = name, dhcpServer} = filter;
		const reference = element.ele('filterref', {
			filter: xmlText('filter', address === undefined ? bootName : name),
		});
		for (const [parameter, value] of [
			['IP', address],
			['DHCPSERVER', dhcpServer],
		] as const) {
			if (value !== undefined) {
				reference.ele('parameter', {name: parameter, value: xmlText(parameter, value)});
			}
		}
	}

	return element;
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
	protection,
	launchSecurity,
	metadata,
}: DomainSpec): string {
	const domain = create().ele('domain', {type: host.domainType});
	domain.ele('name').txt(xmlText('name', name));
	domain.ele('uuid').txt(uuid);
	appendMetadata(domain, metadata);
	domain.ele('memory', {unit: 'MiB'}).txt(String(memoryMib));
	// QEMU before 8.1 drops the memory barriers of an emulated guest that can never have a second CPU. The guest and
	// its devices then miss each other's notifications, and the network of the guest eventually stops working.
	const needsSecond = host.domainType === 'qemu' && vcpus === 1;
	domain
		.ele('vcpu', {
			placement: 'static',
			...(cpuset === undefined ? {} : {cpuset: xmlText('cpuset', cpuset)}),
			...(needsSecond ? {current: '1'} : {}),
		})
		.txt(needsSecond ? '2' : String(vcpus));
	domain
		.ele('os')
		.ele('type', {arch: 's390x', machine: xmlText('machine', host.machine)})
		.txt('hvm');
	if (host.domainType === 'kvm') {
		// Includes the `unpack` facility if the host has it. Emulation has no host model; with emulation, guests boot
		// with the default model of QEMU.
		domain.ele('cpu', {mode: 'host-model'});
	}

	domain.ele('clock', {offset: 'utc'});
	// A pod VM that ended is never restarted: the shim has lost its agent, and the pod is created again.
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
	devices.import(networkInterface({mac, network, protection}));
	devices.ele('console', {type: 'pty'}).ele('target', {type: 'sclp', port: '0'});
	devices.ele('memballoon', {model: 'none'});
	if (launchSecurity !== undefined) {
		domain.ele('launchSecurity', {type: launchSecurity});
	}

	return domain.end({headless: true, prettyPrint: true});
}

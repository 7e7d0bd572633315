/** Finds an address in the subnet of the pod VMs, to determine the route to it. */
import type {LibvirtSession} from '../libvirt/session.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {readXml} from '../libvirt/xml.ts';

/**
 * The IPv4 address of the KVM host in a libvirt network. Undefined if libvirt does not manage the addresses of the
 * network: with `<forward mode='bridge'/>` the VMs are in the subnet of the host (libvirt, docs/formatnetwork.rst,
 * "Addressing").
 * @throws LibvirtError 'not-found' if there is no such network
 */
export async function networkAddress(
	session: Pick<LibvirtSession, 'call'>,
	network: string,
	signal: AbortSignal,
): Promise<string | undefined> {
	const {net} = await session.call(procedures.networkLookupByName, {name: network}, signal);
	const {xml} = await session.call(procedures.networkGetXmlDesc, {net, flags: 0}, signal);
	return readXml(xml).children.find(
		({name, attributes}) => name === 'ip' && (attributes['family'] ?? 'ipv4') === 'ipv4',
	)?.attributes['address'];
}

/** An address in the pod VMs' subnet, for whoever has to know the way there. */
import type {LibvirtSession} from '../libvirt/session.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {readXml} from '../libvirt/xml.ts';

/**
 * The KVM host's own IPv4 address in a libvirt network. Undefined when libvirt does not manage the network's addresses:
 * with `<forward mode='bridge'/>` the VMs are on the host's own subnet (libvirt, docs/formatnetwork.rst, "Addressing").
 * @throws LibvirtError 'not-found' when there is no such network
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

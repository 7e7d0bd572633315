/**
 * The network filters of pod VMs, as XML of libvirt. Pure. Reference: libvirt, docs/formatnwfilter. libvirt converts a
 * filter into ebtables rules for the port of the VM; `out` is what the VM sends. All rules are in the chain `root`, so
 * that their priorities order them, and all are for layer 2 or IPv4, so that neither iptables nor br_netfilter is
 * needed.
 *
 * A VM boots with a filter without an address. After TLS has verified its address, its port gets the filter that allows
 * only this address, as the parameter IP. So libvirt never learns an address: it would remember each learned lease by
 * the UUID and MAC of the VM, which later VMs get again, and libvirtd 9.0 crashes when such a VM starts while two
 * leases are remembered (docs/adr/0027-network-filter.md).
 */

/** The phase, and whether the DHCP server of the network is known. */
export interface FilterKind {
	/** `boot`: until the address is verified. */
	readonly phase: 'boot' | 'bound';
	readonly knowsDhcpServer: boolean;
}

/**
 * The number in the names changes with the rules: VMs of an earlier version keep their filter, and two versions never
 * redefine each other's filters.
 */
const definitions: ReadonlyArray<FilterKind & {readonly name: string; readonly uuid: string}> = [
	{phase: 'bound', knowsDhcpServer: false, name: 'caa-podvm-1', uuid: '5f0c6c1e-7a34-4d0b-9d5e-2f6f7e0c1a01'},
	{phase: 'bound', knowsDhcpServer: true, name: 'caa-podvm-dhcp-1', uuid: '5f0c6c1e-7a34-4d0b-9d5e-2f6f7e0c1a02'},
	{phase: 'boot', knowsDhcpServer: false, name: 'caa-podvm-boot-1', uuid: '5f0c6c1e-7a34-4d0b-9d5e-2f6f7e0c1a03'},
	{phase: 'boot', knowsDhcpServer: true, name: 'caa-podvm-boot-dhcp-1', uuid: '5f0c6c1e-7a34-4d0b-9d5e-2f6f7e0c1a04'},
];

export function ownFilterName({phase, knowsDhcpServer}: FilterKind): string {
	return definitions.find(each => each.phase === phase && each.knowsDhcpServer === knowsDhcpServer)?.name ?? '';
}

/** The filter for the boot, before `name`; undefined for filters that this program does not define. */
export function bootFilterOf(name: string): string | undefined {
	const definition = definitions.find(each => each.name === name && each.phase === 'bound');
	return definition === undefined ? undefined : ownFilterName({...definition, phase: 'boot'});
}

/** The definition of a filter of this program; undefined for other names. */
export function ownFilterXml(name: string): string | undefined {
	const definition = definitions.find(each => each.name === name);
	if (definition === undefined) {
		return undefined;
	}

	const rules = [...outgoing(definition.phase), ...(definition.knowsDhcpServer ? knownDhcpServer : []), ...incoming];
	return [
		`<filter name='${name}' chain='root'>`,
		`  <uuid>${definition.uuid}</uuid>`,
		// libvirt does not order rules of the same priority.
		...rules.map(
			({action, direction, match}, index) =>
				`  <rule action='${action}' direction='${direction}' priority='${index - 500}'><${match}/></rule>`,
		),
		'</filter>',
	].join('\n');
}

interface Rule {
	readonly action: 'accept' | 'drop';
	readonly direction: 'in' | 'out';
	readonly match: string;
}

function rule(action: Rule['action'], direction: Rule['direction'], match: string): Rule {
	return {action, direction, match};
}

const broadcast = 'ff:ff:ff:ff:ff:ff';

function outgoing(phase: FilterKind['phase']): readonly Rule[] {
	return [
		rule('drop', 'out', "mac match='no' srcmacaddr='$MAC'"),
		// A DHCP server. Clients check the destination port of an answer, but not all check its source port.
		rule('drop', 'out', "ip protocol='udp' dstportstart='68'"),
		...(phase === 'boot'
			? [rule('accept', 'out', "mac protocolid='ipv4'"), rule('accept', 'out', "arp arpsrcmacaddr='$MAC'")]
			: [
					rule(
						'accept',
						'out',
						"ip srcipaddr='0.0.0.0' dstipaddr='255.255.255.255' protocol='udp' srcportstart='68' dstportstart='67'",
					),
					rule('accept', 'out', "ip srcipaddr='$IP'"),
					rule('accept', 'out', "arp arpsrcmacaddr='$MAC' arpsrcipaddr='$IP'"),
					// ARP probes for the use of an address, which do not change any ARP cache (RFC 5227, section
					// 2.1.1).
					rule('accept', 'out', "arp opcode='Request' arpsrcmacaddr='$MAC' arpsrcipaddr='0.0.0.0'"),
				]),
		rule('drop', 'out', 'mac'),
	];
}

const knownDhcpServer: readonly Rule[] = [
	rule(
		'accept',
		'in',
		"ip dstmacaddr='$MAC' srcipaddr='$DHCPSERVER' protocol='udp' srcportstart='67' dstportstart='68'",
	),
	rule(
		'accept',
		'in',
		`ip dstmacaddr='${broadcast}' srcipaddr='$DHCPSERVER' protocol='udp' srcportstart='67' dstportstart='68'`,
	),
	rule('drop', 'in', "ip protocol='udp' dstportstart='68'"),
];

/** Only packets for this VM: a bridge floods frames with an unknown destination. */
const incoming: readonly Rule[] = [
	...['$MAC', broadcast].flatMap(destination =>
		['ipv4', 'arp'].map(protocol =>
			rule('accept', 'in', `mac dstmacaddr='${destination}' protocolid='${protocol}'`),
		),
	),
	rule('drop', 'in', 'mac'),
];

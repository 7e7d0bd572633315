/**
 * The network filters of pod VMs, as libvirt's XML. Pure. Reference: libvirt, docs/formatnwfilter. libvirt turns a
 * filter into ebtables rules of the VM's port; `out` is what the VM sends. All rules are in the chain `root`, so that
 * they hold in the order of their priorities, and all are of layer 2 or IPv4, so that no iptables and no br_netfilter
 * is needed.
 *
 * A VM boots with a filter that knows no address. Once it has proven its address by TLS its port gets the filter that
 * allows this address only, as the parameter IP. So libvirt never learns an address by itself: it remembers each
 * learned lease by the VM's UUID and MAC, which later VMs get again, and libvirtd 9.0 crashes when such a VM starts and
 * two are remembered (docs/adr/0027-network-filter.md).
 */

/** Which filter, and whether it knows the network's DHCP server. */
export interface FilterKind {
	/** `boot`: until the address is known. */
	readonly phase: 'boot' | 'bound';
	readonly knowsDhcpServer: boolean;
}

/**
 * The number in the names changes with the rules: VMs of an earlier version keep theirs, and two versions never
 * redefine each other's.
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

/** The filter that a VM boots with before it gets `name`; undefined for filters that are not ours. */
export function bootFilterOf(name: string): string | undefined {
	const definition = definitions.find(each => each.name === name && each.phase === 'bound');
	return definition === undefined ? undefined : ownFilterName({...definition, phase: 'boot'});
}

/** The definition of a filter that is ours; undefined for other names. */
export function ownFilterXml(name: string): string | undefined {
	const definition = definitions.find(each => each.name === name);
	if (definition === undefined) {
		return undefined;
	}

	const rules = [...outgoing(definition.phase), ...(definition.knowsDhcpServer ? knownDhcpServer : []), ...incoming];
	return [
		`<filter name='${name}' chain='root'>`,
		`  <uuid>${definition.uuid}</uuid>`,
		// Rules of one priority have no order among themselves in libvirt.
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
		// A DHCP server: clients look at the port that an answer is sent to, not all at the one that it comes from.
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
					// Probes whether somebody has an address, which teach nobody anything (RFC 5227, section 2.1.1).
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

/** Only what is for this VM: a bridge floods frames whose destination it does not know. */
const incoming: readonly Rule[] = [
	...['$MAC', broadcast].flatMap(destination =>
		['ipv4', 'arp'].map(protocol =>
			rule('accept', 'in', `mac dstmacaddr='${destination}' protocolid='${protocol}'`),
		),
	),
	rule('drop', 'in', 'mac'),
];

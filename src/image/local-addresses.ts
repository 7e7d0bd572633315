/**
 * Addresses that are used only if the operator named them, never because a server named them: this machine (loopback)
 * and link-local addresses, where cloud metadata services are. A name is checked with the addresses of the same DNS
 * lookup that the connection uses, so that a second answer cannot differ.
 */
import {lookup} from 'node:dns';
import {BlockList, isIP, type LookupFunction} from 'node:net';

const local = new BlockList();
for (const [network, prefix] of [
	['127.0.0.0', 8],
	['0.0.0.0', 8],
	['169.254.0.0', 16],
] as const) {
	local.addSubnet(network, prefix, 'ipv4');
}

/**
 * :: and ::1, with IPv4-compatible addresses; link-local addresses. Mapped IPv4 addresses (::ffff:127.0.0.1) match the
 * IPv4 rules.
 */
for (const [network, prefix] of [
	['::', 96],
	['fe80::', 10],
] as const) {
	local.addSubnet(network, prefix, 'ipv6');
}

/** @param address IPv4, or IPv6 without brackets and with or without a zone */
export function isLocalAddress(address: string): boolean {
	const [plain = ''] = address.split('%');
	return local.check(plain, isIP(plain) === 6 ? 'ipv6' : 'ipv4');
}

/** @param hostname as in a URL; false for a name */
export function isLocalLiteral(hostname: string): boolean {
	const address = hostname.replace(/^\[(.*)\]$/v, '$1');
	return isIP(address) !== 0 && isLocalAddress(address);
}

/**
 * A DNS lookup for connections that must not lead to a local address, for `lookup` of Node's requests.
 * @param guarded the only name that is checked: with a proxy, the name of the proxy is looked up, which the operator
 * chose
 * @param refuse creates the error for an address
 */
export function guardedLookup(guarded: string, refuse: (address: string) => Error): LookupFunction {
	return (hostname, options, callback) => {
		lookup(hostname, {...options, all: true}, (error, addresses) => {
			// On an error there are no addresses, contrary to the types.
			if (error !== null) {
				callback(error, []);
				return;
			}

			const refused = hostname === guarded ? addresses.find(({address}) => isLocalAddress(address)) : undefined;
			if (refused !== undefined) {
				callback(refuse(refused.address), []);
			} else if (options.all === true) {
				callback(null, addresses);
			} else {
				callback(null, addresses[0]?.address ?? '', addresses[0]?.family);
			}
		});
	};
}

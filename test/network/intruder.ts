/**
 * Sends VXLAN packets to the node without being the tunnel's VM: an unprivileged process can, whatever its address is.
 */
import {fileURLToPath} from 'node:url';
import type {PodNetwork} from '../../src/sandbox/ports.ts';
import type {NetworkTestbed} from './testbed.ts';

export const datagrams = fileURLToPath(new URL('datagrams.ts', import.meta.url));
export const intruderCount = 20;
export const floodCount = 5000;

export interface Intrusion {
	/** The pod in whose tunnel, and from whose address, it sends. */
	readonly victim: PodNetwork;
	/** Another pod, which gets the datagrams. */
	readonly target: {readonly netns: string; readonly address: string; readonly dev?: string};
	/** The namespace that it sends from; the worker's own if absent. */
	readonly from?: string;
}

/** @returns how many of `intruderCount` datagrams arrived */
export async function intrude(testbed: NetworkTestbed, {victim, target, from}: Intrusion): Promise<number> {
	const before = await refused(testbed, target.netns);
	const hex = (await vxlanPacket(testbed, victim, target)).toString('hex');
	await testbed.sh(
		`${process.execPath} ${datagrams} send ${hostOf(victim.workerNodeIp)} ${victim.vxlanPort} ${intruderCount} ${hex}`,
		from,
	);
	return (await refused(testbed, target.netns)) - before;
}

/**
 * As `intrude`, each packet in two fragments, from a raw socket.
 * @param firstBytes how much of UDP header and payload is in the first one: a multiple of 8
 */
export async function sendFragments(
	testbed: NetworkTestbed,
	{victim, target, from, source, firstBytes}: Intrusion & {readonly source: string; readonly firstBytes: number},
): Promise<number> {
	const before = await refused(testbed, target.netns);
	const packet = await vxlanPacket(testbed, victim, target);
	const udp = Buffer.alloc(8);
	udp.writeUInt16BE(9999, 0);
	udp.writeUInt16BE(victim.vxlanPort, 2);
	udp.writeUInt16BE(udp.length + packet.length, 4);
	const datagram = Buffer.concat([udp, packet]).toString('hex');
	// Node.js has no raw sockets.
	await testbed.sh(
		`perl -MSocket -e '
		socket(my $raw, AF_INET, SOCK_RAW, 255) or die;
		my ($source, $to, $first, $count, $hex) = @ARGV;
		my $datagram = pack("H*", $hex);
		for my $id (1 .. $count) {
			for ([0x2000, substr($datagram, 0, $first)], [$first / 8, substr($datagram, $first)]) {
				my $header = pack("CCnnnCCna4a4", 0x45, 0, 20 + length($_->[1]), $id, $_->[0], 64, 17, 0, inet_aton($source), inet_aton($to));
				send($raw, $header . $_->[1], 0, sockaddr_in(0, inet_aton($to))) or die $!;
			}
		}' ${source} ${hostOf(victim.workerNodeIp)} ${firstBytes} ${intruderCount} ${datagram}`,
		from,
	);
	return (await refused(testbed, target.netns)) - before;
}

/** VXLAN header (RFC 7348, section 5), Ethernet, IPv4, UDP without checksum to a port that nobody has open. */
export async function vxlanPacket(
	testbed: NetworkTestbed,
	victim: PodNetwork,
	{netns, address, dev = 'eth0'}: Intrusion['target'],
): Promise<Buffer> {
	const [, mac = ''] = /link\/ether (\S+)/v.exec(await testbed.sh(`ip link show ${dev}`, netns)) ?? [];
	const packet = Buffer.alloc(8 + 14 + 20 + 8);
	packet.writeUInt8(0x08, 0);
	packet.writeUIntBE(victim.vxlanId, 4, 3);
	Buffer.from(`${mac}${victim.podHwAddr}0800`.replaceAll(':', ''), 'hex').copy(packet, 8);
	const ip = packet.subarray(22, 42);
	Buffer.from('4500001c000000004011', 'hex').copy(ip);
	Buffer.from([...hostOf(victim.podIp).split('.'), ...address.split('.')].map(Number)).copy(ip, 12);
	ip.writeUInt16BE(checksum(ip), 10);
	Buffer.from('0009000900080000', 'hex').copy(packet, 42);
	return packet;
}

/** Internet checksum, RFC 1071. */
function checksum(bytes: Buffer): number {
	let sum = 0;
	for (let at = 0; at < bytes.length; at += 2) {
		sum += bytes.readUInt16BE(at);
	}

	return ~((sum & 0xff_ff) + (sum >>> 16)) & 0xff_ff;
}

function hostOf(prefix: string): string {
	return prefix.split('/')[0] ?? '';
}

/** UDP datagrams that came to a port that nobody has open. */
export async function refused(testbed: NetworkTestbed, netns: string): Promise<number> {
	const [names = '', values = ''] = (await testbed.sh('grep ^Udp: /proc/net/snmp', netns)).split('\n');
	return Number(values.split(' ')[names.split(' ').indexOf('NoPorts')]);
}

/**
 * Datagrams that each follow the answer to the last one; `work`, if any, is done again and again until they have ended.
 * @returns how many were answered, up to the first that was lost, and how often `work` was done
 */
export async function flood(
	testbed: NetworkTestbed,
	path: {readonly from: string; readonly to: string; readonly address: string; readonly size?: number},
	work?: () => Promise<void>,
): Promise<{readonly answered: number; readonly rounds: number}> {
	await using _ = await testbed.serve(path.to, [datagrams, 'echo', '8081']);
	const pings = {areOver: false};
	const answered = testbed
		.sh(`${process.execPath} ${datagrams} flood ${path.address} 8081 ${floodCount} ${path.size ?? 20}`, path.from)
		.finally(() => {
			pings.areOver = true;
		});
	answered.catch(() => undefined);
	let rounds = 0;
	while (work !== undefined && !pings.areOver) {
		await work();
		rounds++;
	}

	return {answered: Number(await answered), rounds};
}

/** What a daemon of a version without the guard writes, as a script for a shell. */
export function earlierVersion(address: string, vni: number): string {
	return `
nft -f - <<'E'
table ip caa_peerpods {
	set vms { type ipv4_addr; }
	chain out { type filter hook output priority raw; }
	chain pre { type filter hook prerouting priority raw; }
}
flush chain ip caa_peerpods out
flush chain ip caa_peerpods pre
add rule ip caa_peerpods out ip daddr @vms udp dport 4789 notrack
add rule ip caa_peerpods pre ip saddr @vms udp dport 4789 notrack
add element ip caa_peerpods vms { ${address} comment "vni ${vni}" }
E
`;
}

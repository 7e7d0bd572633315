/**
 * Assigns a MAC and a UUID to each VM of this node. A node has 256 slots; a slot is a pair of one MAC and one UUID.
 *
 * MACs are recycled for two reasons. First, for a MAC that dnsmasq has not seen before, it probes the address with ICMP
 * for three seconds before it offers the address. Second, a new MAC for every VM would exhaust the leases of libvirt's
 * default network. The UUID encodes (cluster, node, slot) as well, because libvirt refuses to define a second domain
 * with a UUID that is in use (libvirt, src/conf/virdomainobjlist.c, virDomainObjListAddLocked): libvirt itself acts as
 * the lock, so two daemons that run at the same time during a rolling update can never run two VMs with one MAC.
 * Because UUIDs are recycled too, nothing is ever deleted by UUID alone.
 */
import {createHash} from 'node:crypto';
import {AdaptorError} from '../core/errors.ts';

export interface VmSlot {
	/** 16 bytes, as in libvirt's protocol. */
	readonly uuid: Buffer;
	/** Lower case, e.g. `52:1f:…`: locally administered, unicast. */
	readonly mac: string;
}

export const slotCount = 256;

export class VmSlots {
	readonly #prefix: Buffer;
	readonly #macPrefix: string;

	constructor(cluster: string, node: string) {
		if (cluster.includes('\0') || node.includes('\0')) {
			throw new AdaptorError({
				code: 'invalid-argument',
				what: 'The name of the cluster or of the node contains a NUL character',
				remedy: 'Set NODE_NAME to the name of the Kubernetes node.',
			});
		}

		const hash = createHash('sha256').update(`${cluster}\0${node}`).digest();
		this.#prefix = Buffer.from(hash.subarray(0, 15));
		// RFC 9562: version 8 (custom), variant 10.
		this.#prefix.writeUInt8(0x80 | (hash.readUInt8(6) & 0x0f), 6);
		this.#prefix.writeUInt8(0x80 | (hash.readUInt8(8) & 0x3f), 8);
		// Not the bytes of the UUID, so that its fixed version bits do not reduce the entropy.
		this.#macPrefix = ['52', ...hash.toString('hex', 16, 20).matchAll(/../g)].join(':');
	}

	/** @param number 0 to 255 */
	at(number: number): VmSlot {
		const last = Buffer.of(number);
		return {uuid: Buffer.concat([this.#prefix, last]), mac: `${this.#macPrefix}:${last.toString('hex')}`};
	}

	/** The number of the slot; undefined if the UUID does not belong to this cluster and node. */
	numberOf(uuid: Uint8Array): number | undefined {
		return uuid.length === 16 && this.#prefix.equals(uuid.subarray(0, 15)) ? uuid[15] : undefined;
	}

	/**
	 * The lowest first, so that few MACs are in use and their leases are remembered.
	 * @throws AdaptorError 'resource-exhausted'
	 */
	lowestFree(taken: ReadonlySet<number>): number {
		for (let number = 0; number < slotCount; number++) {
			if (!taken.has(number)) {
				return number;
			}
		}

		throw new AdaptorError({
			code: 'resource-exhausted',
			what: `Could not start a pod VM: this node already has ${slotCount}`,
			remedy: 'Lower PEERPODS_LIMIT_PER_NODE, so that the scheduler places fewer pods here, or delete leftover VMs.',
		});
	}
}

/** `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` */
export function formatUuid(uuid: Uint8Array): string {
	return Buffer.from(uuid)
		.toString('hex')
		.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

export function parseUuid(text: string): Buffer {
	return Buffer.from(text.replaceAll('-', ''), 'hex');
}

/**
 * What we write into a domain's <metadata>: whose it is and what belongs to it. The definition is the journal of a
 * start: it is written before the first disk is made and removed after the last disk is gone, so whoever lists domains
 * knows what to clean up, without any state of our own. Other tools read it with `virsh metadata DOMAIN
 * urn:cloud-api-adaptor:pod-vm:1`. Never holds a secret.
 */
import type {XMLBuilder} from 'xmlbuilder2/lib/interfaces.js';
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import type {PodIdentity, SandboxId} from '../sandbox/ports.ts';
import {child, children, xmlText, type XmlElement} from '../libvirt/xml.ts';

/** The number at its end changes when readers of the old form would misread the new one. */
export const metadataNamespace = 'urn:cloud-api-adaptor:pod-vm:1';

/** A directory of sandbox records on one node: the daemon that holds it answers for the VM. */
export interface PodsDir {
	/** Opaque hexadecimal text: equal for two daemons only if they have the same directory on the same node. */
	readonly fingerprint: string;
	/** What an operator reads: PODS_DIR. */
	readonly path: string;
}

export interface PodVmMetadata {
	readonly cluster: string;
	readonly node: string;
	/** Absent in VMs of earlier versions. */
	readonly podsDir?: PodsDir;
	readonly sandboxId: SandboxId;
	readonly pod: PodIdentity;
	readonly vni: number;
	readonly createdAt: Date;
	/** Of one start: whose definition it is when two daemons define the same VM at the same time. */
	readonly nonce: string;
	readonly pool: string;
	/** In which the pool has its volumes, on the KVM host. Absent in VMs of earlier versions. */
	readonly poolDirectory?: string;
	readonly rootVolume: string;
	readonly cidataVolume: string;
	/** The volume that the root disk is an overlay of. */
	readonly baseImage: string;
}

/** libvirt wants one top-level element a namespace, with a prefix (libvirt, docs/formatdomain, "General metadata"). */
export function appendMetadata(
	domain: XMLBuilder,
	{
		cluster,
		node,
		podsDir,
		sandboxId,
		pod,
		vni,
		createdAt,
		nonce,
		pool,
		poolDirectory,
		rootVolume,
		cidataVolume,
		baseImage,
	}: PodVmMetadata,
): void {
	const own = (name: string): [string, string] => [metadataNamespace, `podvm:${name}`];
	const attributes = (of: Readonly<Record<string, string | undefined>>): Record<string, string> =>
		Object.fromEntries(
			Object.entries(of).flatMap(([name, value]) => (value === undefined ? [] : [[name, xmlText(name, value)]])),
		);
	domain
		.ele('metadata')
		.ele(
			...own('pod-vm'),
			attributes({'sandbox-id': sandboxId, vni: String(vni), 'created-at': createdAt.toISOString(), nonce}),
		)
		.ele(
			...own('owner'),
			attributes({cluster, node, 'pods-dir': podsDir?.path, 'pods-dir-id': podsDir?.fingerprint}),
		)
		.up()
		.ele(...own('pod'), attributes({...pod}))
		.up()
		.ele(
			...own('volumes'),
			attributes({pool, directory: poolDirectory, root: rootVolume, cidata: cidataVolume, base: baseImage}),
		);
}

/**
 * The metadata in a domain's XML; undefined when there is none of ours.
 * @throws AdaptorError 'data-loss' when it is ours and incomplete
 */
export function readMetadata(domain: XmlElement): PodVmMetadata | undefined {
	const entry = child(domain, 'metadata')?.children.find(
		({name, namespace}) => name === 'pod-vm' && namespace === metadataNamespace,
	);
	if (entry === undefined) {
		return undefined;
	}

	const part = (name: string): XmlElement | undefined =>
		children(entry, name).find(({namespace}) => namespace === metadataNamespace);
	const volumes = part('volumes');
	const vni = Number(attribute(entry, 'vni'));
	const createdAt = new Date(attribute(entry, 'created-at'));
	if (!Number.isSafeInteger(vni) || Number.isNaN(createdAt.getTime())) {
		throw malformed('vni or created-at');
	}

	const uid = part('pod')?.attributes['uid'];
	const poolDirectory = volumes?.attributes['directory'];
	const {'pods-dir': path = '', 'pods-dir-id': fingerprint} = part('owner')?.attributes ?? {};
	return {
		cluster: attribute(part('owner'), 'cluster'),
		node: attribute(part('owner'), 'node'),
		...(fingerprint === undefined ? {} : {podsDir: {fingerprint, path}}),
		sandboxId: attribute(entry, 'sandbox-id'),
		pod: {
			name: attribute(part('pod'), 'name'),
			namespace: attribute(part('pod'), 'namespace'),
			...present({uid}),
		},
		vni,
		createdAt,
		nonce: attribute(entry, 'nonce'),
		pool: attribute(volumes, 'pool'),
		...present({poolDirectory}),
		rootVolume: attribute(volumes, 'root'),
		cidataVolume: attribute(volumes, 'cidata'),
		baseImage: attribute(volumes, 'base'),
	};
}

function attribute(element: XmlElement | undefined, name: string): string {
	const value = element?.attributes[name];
	if (value === undefined) {
		throw malformed(name);
	}

	return value;
}

function malformed(field: string): AdaptorError {
	return new AdaptorError({
		code: 'data-loss',
		what: `The metadata of a domain has no valid ${field}`,
		where: {field},
	});
}

/**
 * The <metadata> of a domain: its owner and its parts. The definition is the journal of a start: it is written before
 * the first disk is created and removed after the last disk is deleted, so a list of domains shows what must be cleaned
 * up, and this program needs no separate state. Other tools read it with `virsh metadata DOMAIN
 * urn:cloud-api-adaptor:pod-vm:1`. Never contains a secret.
 */
import type {XMLBuilder} from 'xmlbuilder2/lib/interfaces.js';
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import type {PodIdentity, SandboxId} from '../sandbox/ports.ts';
import {child, children, xmlText, type XmlElement} from '../libvirt/xml.ts';

/** The number at the end is increased if old versions would misread the new format. */
export const metadataNamespace = 'urn:cloud-api-adaptor:pod-vm:1';

/** A directory of sandbox records on one node: its daemon owns the VM. */
export interface PodsDir {
	/** Opaque hexadecimal text, equal for two daemons only if they use the same directory on the same node. */
	readonly fingerprint: string;
	/** Shown to operators: PODS_DIR. */
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
	/** Identifies one start, if two daemons define the same VM at the same time. */
	readonly nonce: string;
	readonly pool: string;
	/** The directory of the pool on the KVM host. Absent in VMs of earlier versions. */
	readonly poolDirectory?: string;
	readonly rootVolume: string;
	readonly cidataVolume: string;
	/** The volume that the root disk is an overlay of. */
	readonly baseImage: string;
}

/**
 * libvirt requires one top-level element per namespace, with a prefix (libvirt, docs/formatdomain, "General metadata").
 */
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
 * The metadata in the XML of a domain; undefined if there is none of this program.
 * @throws AdaptorError 'data-loss' if it is incomplete
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

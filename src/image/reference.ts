/**
 * References to images in registries, in the usual forms. Pure. Sources: cloud-api-adaptor's PODVM_IMAGE_URI
 * (`oci::REPOSITORY[:TAG|@DIGEST][::PATH]`); the reference grammar of container images (distribution,
 * reference/regexp.go) with Docker Hub's defaults.
 */
import {AdaptorError} from '../core/errors.ts';

export interface ImageReference {
	/** Host, with a port other than that of HTTPS; `docker.io` for Docker Hub. */
	readonly registry: string;
	/** `openshift_sandboxed_containers/podvm`; for official images of Docker Hub `library/…`. */
	readonly repository: string;
	/** A tag, or a digest with its algorithm. The digest if the reference has both. */
	readonly version: {readonly tag: string} | {readonly digest: string};
	/** Path of the image file in the file system of the layers, without leading slash. */
	readonly path: string;
}

export const defaultImagePath = 'image/podvm.qcow2';
const defaultTag = 'latest';
const dockerHub = 'docker.io';

const pathComponent = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*';
const repositoryPattern = new RegExp(`^${pathComponent}(?:/${pathComponent})*$`, 'v');
const tagPattern = /^\w[\w.\-]{0,127}$/v;
/** The algorithms of the OCI image specification (descriptor, "Registered algorithms"). */
export const digestPattern = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/v;
const hostPattern =
	/^(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9\-]*[A-Za-z0-9])(?:\.(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9\-]*[A-Za-z0-9]))*)(?::(\d{1,5}))?$/v;

/** @throws AdaptorError 'invalid-argument' */
export function parseImageReference(text: string): ImageReference {
	const withoutScheme = text.replace(/^(?:oci::|docker:\/\/)/v, '');
	// An IPv6 address of a registry has "::" as well.
	const afterHost = withoutScheme.startsWith('[') ? withoutScheme.indexOf(']') + 1 : 0;
	const separator = withoutScheme.indexOf('::', afterHost);
	const image = separator === -1 ? withoutScheme : withoutScheme.slice(0, separator);
	const path = separator === -1 ? defaultImagePath : imagePath(withoutScheme.slice(separator + '::'.length), text);

	const at = image.indexOf('@');
	const digest = at === -1 ? undefined : image.slice(at + 1);
	if (digest !== undefined && !digestPattern.test(digest)) {
		throw refused(text, 'its digest is neither sha256: with 64 nor sha512: with 128 hexadecimal digits');
	}

	const named = at === -1 ? image : image.slice(0, at);
	// A colon after the last slash starts the tag; a colon before it starts the port.
	const colon = named.indexOf(':', Math.max(named.lastIndexOf('/'), named.lastIndexOf(']')) + 1);
	const tag = colon === -1 ? defaultTag : named.slice(colon + 1);
	if (!tagPattern.test(tag)) {
		throw refused(text, 'its tag has characters other than letters, digits and . _ - or is longer than 128');
	}

	const {registry, repository} = registryOf(colon === -1 ? named : named.slice(0, colon), text);
	return {registry, repository, version: digest === undefined ? {tag} : {digest}, path};
}

/** The usual form, without the path. */
export function formatReference({
	registry,
	repository,
	version,
}: Pick<ImageReference, 'registry' | 'repository' | 'version'>): string {
	return `${registry}/${repository}${'tag' in version ? `:${version.tag}` : `@${version.digest}`}`;
}

/** The first part is a host if it looks like one. */
function registryOf(name: string, text: string): {registry: string; repository: string} {
	const slash = name.indexOf('/');
	const first = slash === -1 ? '' : name.slice(0, slash);
	const isHost = /[.:A-Z]/v.test(first) || first === 'localhost';
	const registry = !isHost || first === 'index.docker.io' || first === 'registry-1.docker.io' ? dockerHub : first;
	const rest = isHost ? name.slice(slash + 1) : name;
	const repository = registry === dockerHub && !rest.includes('/') ? `library/${rest}` : rest;
	const [, port] = hostPattern.exec(registry) ?? [];
	// A URL parses a host that ends in a number as an IPv4 address, and rejects it if it is not one.
	if (!hostPattern.test(registry) || port === '0' || !URL.canParse(`https://${registry}/`)) {
		throw refused(text, 'its registry is not a host name (with an optional port)');
	}

	if (repository.length > 255 || !repositoryPattern.test(repository)) {
		throw refused(
			text,
			'its repository has characters other than lower-case letters, digits and separators between them',
		);
	}

	return {registry, repository};
}

function imagePath(path: string, text: string): string {
	const parts = path.split('/').filter(part => part !== '' && part !== '.');
	if (
		parts.length === 0 ||
		path.endsWith('/') ||
		parts.includes('..') ||
		/\p{Cc}/v.test(path) ||
		!path.isWellFormed() ||
		path.length > 4096
	) {
		throw refused(text, 'what follows "::" is not the path of a file');
	}

	return parts.join('/');
}

function refused(text: string, why: string): AdaptorError {
	const shown = text.replace(/[^\/:@]*:[^\/@]*@(?!sha(?:256|512):)/v, '…@');
	return new AdaptorError({
		code: 'invalid-argument',
		what: `Could not read the image reference: ${why}`,
		// A reference should not contain a password, but the user may have written one.
		where: {reference: shown.length > 300 ? `${shown.slice(0, 300)}…` : shown},
		remedy: 'Write oci::REPOSITORY[:TAG|@DIGEST][::PATH], such as oci::quay.io/openshift_sandboxed_containers/podvm:latest::/image/podvm.qcow2.',
	});
}

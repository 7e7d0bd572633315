/**
 * Converts registry credentials from the formats of image pull secrets to the format that pod VMs read. Pure. No error
 * contains any part of them. Sources: Kubernetes, "Pull an Image from a Private Registry" and pkg/credentialprovider
 * (which entries the kubelet accepts, and in which order); containers-auth.json(5);
 * confidential-containers/guest-components, image-rs/src/auth (the VM reads only `auth`, in padded base64; one entry
 * without it makes the whole file unusable).
 */
import {basicAuthOf, parseDockerAuth} from '../core/docker-auth.ts';
import {AdaptorError} from '../core/errors.ts';

/** `auth` by registry: a host, optionally with a port and a path prefix. */
export type RegistryAuth = ReadonlyMap<string, string>;

export interface ParsedAuth {
	readonly credentials: RegistryAuth;
	/** Number of registries that were left out because of their names. */
	readonly refused: number;
}

/** A host name has at most 253 characters, and the path of a repository 255. */
export const maxRegistryLength = 512;

/**
 * @param text of `.dockerconfigjson` and `auth.json`, with the entries under `auths`, or of the older `.dockercfg`,
 * with the entries at the top
 * @throws AdaptorError 'data-loss'
 */
export function parseRegistryAuth(text: string, format: 'dockerconfigjson' | 'dockercfg'): ParsedAuth {
	const credentials = new Map<string, string>();
	let refused = 0;
	for (const [registry, entry] of parseDockerAuth(text, format)) {
		if (!isRegistry(registry)) {
			refused++;
			continue;
		}

		const auth = authOf(entry);
		const key = registryKey(registry);
		if (auth !== undefined && key !== '' && !credentials.has(key)) {
			credentials.set(key, auth);
		}
	}

	return {credentials, refused};
}

/**
 * The content of `auth.json`, or undefined without credentials. If a registry has several credentials, the first ones
 * win.
 */
export function authJson(sources: readonly RegistryAuth[]): string | undefined {
	const merged = new Map<string, string>();
	for (const [registry, auth] of sources.flatMap(source => [...source])) {
		if (!merged.has(registry)) {
			merged.set(registry, entryOf(registry, auth));
		}
	}

	return merged.size === 0 ? undefined : `{"auths":{${[...merged.values()].join(',')}}}`;
}

/** The size of these credentials in `auth.json`. */
export function bytesOf(credentials: RegistryAuth): number {
	return credentials
		.entries()
		.reduce((sum, [registry, auth]) => sum + registry.length + auth.length + entryOf('', '').length + 1, 0);
}

/** No character needs an escape: `isRegistry` allows ASCII without quotes and backslashes, and base64 has neither. */
function entryOf(registry: string, auth: string): string {
	return `"${registry}":{"auth":"${auth}"}`;
}

/** In padded base64. @throws AdaptorError 'data-loss' */
function authOf(entry: unknown): string | undefined {
	const login = basicAuthOf(entry);
	if (login === 'malformed') {
		throw new AdaptorError({code: 'data-loss', what: 'an "auth" is not the base64 of USER:PASSWORD'});
	}

	return login?.toString('base64');
}

/**
 * Printable ASCII without quote and backslash, so that `auth.json` needs no escapes. Real registry names have no other
 * characters.
 */
function isRegistry(text: string): boolean {
	return text.length <= maxRegistryLength && /^[!#-\[\]-~]*$/v.test(text);
}

/** Without scheme, API version suffix and final slash: the kubelet treats these as equal. */
function registryKey(registry: string): string {
	const key = registry.replace(/^https?:\/\//v, '').replace(/^([^\/]*)\/v[12]\//v, '$1/');
	let end = key.length;
	// The pattern `/\/+$/` would take quadratic time for slashes that are not at the end.
	while (key[end - 1] === '/') {
		end--;
	}

	return key.slice(0, end);
}

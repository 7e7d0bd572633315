/**
 * Reads registry credentials in the common format of container tools. Pure. Errors contain nothing of the input.
 * Sources: containers-auth.json(5); Docker's config.json; Kubernetes, "Pull an Image from a Private Registry" and
 * pkg/credentialprovider.
 */
import {AdaptorError} from './errors.ts';
import {at, parseJson, textAt} from './json.ts';

/**
 * The entries by registry name, both unchanged.
 * @param format `dockerconfigjson` and `auth.json` have them under `auths`, the older `dockercfg` at the top
 * @throws AdaptorError 'data-loss'
 */
export function parseDockerAuth(
	json: string,
	format: 'dockerconfigjson' | 'dockercfg',
): ReadonlyArray<readonly [registry: string, entry: unknown]> {
	let value: unknown;
	try {
		value = parseJson(json);
	} catch {
		throw malformed('not JSON');
	}

	const entries = format === 'dockercfg' ? value : (at(value, 'auths') ?? {});
	if (!isObject(value) || !isObject(entries)) {
		throw malformed('not a table of registries');
	}

	return Object.entries(entries);
}

/**
 * `USER:PASSWORD` of an entry, in UTF-8. `auth` takes precedence over user name and password, as in the kubelet.
 * Undefined for an entry of another kind (an identity token, a credential helper).
 */
export function basicAuthOf(entry: unknown): Buffer | 'malformed' | undefined {
	// With or without padding, as in the kubelet.
	const auth = (textAt(entry, 'auth') ?? '').replaceAll(/[\r\n]/gv, '').replace(/={1,2}$/v, '');
	if (auth !== '') {
		const decoded = Buffer.from(auth, 'base64');
		return decoded.toString('base64').replace(/=+$/v, '') === auth && decoded.includes(':') ? decoded : 'malformed';
	}

	const [username = '', password = ''] = [textAt(entry, 'username'), textAt(entry, 'password')];
	return username === '' || password === '' ? undefined : Buffer.from(`${username}:${password}`);
}

function malformed(what: string): AdaptorError {
	return new AdaptorError({code: 'data-loss', what});
}

function isObject(value: unknown): value is object {
	return typeof value === 'object' && value !== null && !Array.isArray(value);
}

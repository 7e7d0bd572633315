/**
 * Reads logins for registries in the format that container tools share. Pure. No error repeats anything of them.
 * Sources: containers-auth.json(5); Docker's config.json; Kubernetes, "Pull an Image from a Private Registry" and
 * pkg/credentialprovider.
 */
import {AdaptorError} from './errors.ts';
import {at, parseJson, textAt} from './json.ts';

/**
 * The entries by the registry's name, both as they are written.
 * @param format `dockerconfigjson` and `auth.json` have them under `auths`, the older `dockercfg` has nothing else
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
 * `USER:PASSWORD` of an entry, in UTF-8. `auth` wins over user name and password, as with the kubelet. Undefined for an
 * entry that is for other programs (an identity token, a credential helper's mark).
 */
export function basicAuthOf(entry: unknown): Buffer | 'malformed' | undefined {
	// Padded or not, as the kubelet takes it.
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

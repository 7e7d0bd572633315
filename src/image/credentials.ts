/**
 * Credentials for registries, from a file in the common format of container tools (containers-auth.json(5), Docker's
 * config.json, Kubernetes' dockerconfigjson). Credential helpers are programs and are not run.
 */
import {readFile} from 'node:fs/promises';
import {basicAuthOf, parseDockerAuth} from '../core/docker-auth.ts';
import {AdaptorError} from '../core/errors.ts';
import {textAt} from '../core/json.ts';
import {Secret} from '../core/log.ts';
import {present} from '../core/present.ts';
import type {ImageReference} from './reference.ts';

export type Credentials =
	| {readonly user: string; readonly password: Secret<string>}
	/** Refresh token of OAuth2. */
	| {readonly identityToken: Secret<string>};

type Entries = ReadonlyMap<string, Credentials>;

/**
 * The credentials for a repository from the first existing file; the most specific entry wins.
 * @param named a file that was explicitly named: it must exist
 * @param usual files that may exist
 * @throws AdaptorError 'failed-precondition' for a file that cannot be read or parsed
 */
export async function findCredentials(
	reference: ImageReference,
	named: string | undefined,
	usual: readonly string[],
): Promise<Credentials | undefined> {
	for (const path of named === undefined ? usual : [named]) {
		const text = await readIfThere(path, named !== undefined);
		if (text !== undefined) {
			const found = pick(parse(text, path), reference);
			if (found !== undefined || named !== undefined) {
				return found;
			}
		}
	}

	return undefined;
}

async function readIfThere(path: string, mustExist: boolean): Promise<string | undefined> {
	try {
		return await readFile(path, 'utf8');
	} catch (error) {
		if (
			!mustExist &&
			error instanceof Error &&
			'code' in error &&
			['ENOENT', 'ENOTDIR', 'EACCES', 'EISDIR'].includes(String(error.code))
		) {
			return undefined;
		}

		throw unreadable(path, 'it cannot be read', error);
	}
}

/**
 * Exported for tests.
 * @throws AdaptorError without any content of the text
 */
export function parse(text: string, path: string): Entries {
	let written: ReturnType<typeof parseDockerAuth>;
	try {
		written = parseDockerAuth(text, 'dockerconfigjson');
	} catch (error) {
		throw error instanceof AdaptorError ? unreadable(path, `it is ${error.what}`) : error;
	}

	const entries = new Map<string, Credentials>();
	for (const [key, entry] of written) {
		const credentials = credentialsOf(entry);
		if (credentials !== undefined) {
			entries.set(normalKey(key), credentials);
		}
	}

	return entries;
}

function credentialsOf(entry: unknown): Credentials | undefined {
	const token = textAt(entry, 'identitytoken') ?? '';
	if (token !== '') {
		return {identityToken: new Secret(token)};
	}

	const login = basicAuthOf(entry);
	if (login === undefined || login === 'malformed') {
		return undefined;
	}

	const text = login.toString();
	const colon = text.indexOf(':');
	return {user: text.slice(0, colon), password: new Secret(text.slice(colon + 1).replace(/\0+$/v, ''))};
}

/** Docker writes URLs such as `https://index.docker.io/v1/`; other tools write hosts, or hosts with repositories. */
function normalKey(key: string): string {
	const bare = key.replace(/^https?:\/\//v, '').replace(/\/(?:v[12]\/?)?$/v, '');
	return bare.replace(/^(?:index\.docker\.io|registry-1\.docker\.io)(?=\/|$)/v, 'docker.io');
}

function pick(entries: Entries, {registry, repository}: ImageReference): Credentials | undefined {
	for (let key = `${registry}/${repository}`; ; key = key.slice(0, key.lastIndexOf('/'))) {
		const found = entries.get(key);
		if (found !== undefined || !key.includes('/')) {
			return found;
		}
	}
}

function unreadable(path: string, why: string, cause?: unknown): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `Could not read the registry credentials: ${why}`,
		where: {path},
		remedy: 'Name a file of the form {"auths": {"REGISTRY": {"auth": "BASE64 OF USER:PASSWORD"}}} in REGISTRY_AUTH_FILE.',
		...present({cause}),
	});
}

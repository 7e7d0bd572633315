/**
 * The private keys for an ssh connection: the file in the URI, or every `id_*` of `~/.ssh`. OpenShift mounts the keys
 * there as a read-only secret. Knows nothing about connections.
 */
import {readdir, readFile, stat} from 'node:fs/promises';
import ssh2, {type ParsedKey} from 'ssh2';
import {AdaptorError, type ErrorCode, toError} from '../../core/errors.ts';

export interface Identity {
	readonly path: string;
	readonly key: ParsedKey;
	/** The mode of the file lets other users read or write it: worth a warning. */
	readonly exposed: boolean;
}

export interface Identities {
	readonly usable: readonly Identity[];
	/** Files that look like keys but cannot be used, with the reason. */
	readonly unusable: ReadonlyArray<{readonly path: string; readonly reason: string}>;
}

/** The most likely keys first: servers give up after six. */
const preference = ['id_ed25519', 'id_ecdsa', 'id_rsa'];

/**
 * @param keyfile the only file to read, if set
 * @param home otherwise the `.ssh` directory in this home directory is read
 * @param uid the user id of this process, if known
 * @throws AdaptorError if `keyfile` is set and cannot be used
 */
export async function loadIdentities(
	keyfile: string | undefined,
	home: string,
	uid: number | undefined,
	signal: AbortSignal,
): Promise<Identities> {
	if (keyfile !== undefined) {
		return {usable: [await readIdentity(expandHome(keyfile, home), uid, signal)], unusable: []};
	}

	const usable: Identity[] = [];
	const unusable: Array<{path: string; reason: string}> = [];
	for (const path of await defaultKeyFiles(`${home}/.ssh`)) {
		try {
			usable.push(await readIdentity(path, uid, signal));
		} catch (error) {
			signal.throwIfAborted();
			unusable.push({path, reason: error instanceof AdaptorError ? error.what : toError(error).message});
		}
	}

	return {usable, unusable};
}

/** Expands `~/` as a shell does. */
export function expandHome(path: string, home: string): string {
	return path.startsWith('~/') ? home + path.slice(1) : path;
}

async function defaultKeyFiles(directory: string): Promise<readonly string[]> {
	const names = await readdir(directory).catch(() => []);
	const rank = (name: string): number => preference.indexOf(name) + 1 || preference.length + 1;
	return names
		.filter(name => /^id_[\w-]+$/.test(name))
		.sort((a, b) => rank(a) - rank(b) || (a < b ? -1 : 1))
		.map(name => `${directory}/${name}`);
}

async function readIdentity(path: string, uid: number | undefined, signal: AbortSignal): Promise<Identity> {
	let text: Buffer;
	let mode: number;
	let owner: number;
	try {
		({mode, uid: owner} = await stat(path));
		text = await readFile(path, {signal});
	} catch (error) {
		signal.throwIfAborted();
		const missing = error instanceof Error && 'code' in error && error.code === 'ENOENT';
		throw missing
			? unusable(
					'not-found',
					'The ssh key file does not exist',
					path,
					'Correct keyfile= in the URI, or copy the private key to that path.',
					error,
				)
			: unusable(
					'permission-denied',
					'Could not read the ssh key file',
					path,
					'Make it readable for the user of this process.',
					error,
				);
	}

	const key = ssh2.utils.parseKey(text);
	if (key instanceof Error) {
		throw /encrypted/i.test(key.message)
			? unusable(
					'failed-precondition',
					'The ssh key file is encrypted with a passphrase',
					path,
					'Use a key without one (ssh-keygen -p -N "" -f FILE), or an ssh agent with sshauth=agent in the URI.',
				)
			: unusable(
					'failed-precondition',
					'The ssh key file contains no usable private key',
					path,
					'Use a private key in OpenSSH or PEM format: ed25519, ECDSA or RSA.',
					key,
				);
	}

	// A file in OpenSSH's format may contain several keys; the types of ssh2 do not say so.
	const first = Array.isArray(key) ? (key as ParsedKey[])[0] : key;
	if (first?.isPrivateKey() !== true) {
		throw unusable(
			'failed-precondition',
			'The ssh key file only contains a public key',
			path,
			'Name the private key: the file without .pub.',
		);
	}

	// The files of a secret belong to root. Kubelet makes them readable by the group of a non-root container (fsGroup),
	// whatever mode was configured.
	const others = uid === undefined || uid === owner ? 0o077 : 0o037;
	return {path, key: first, exposed: (mode & others) !== 0};
}

function unusable(code: ErrorCode, what: string, path: string, remedy: string, cause?: unknown): AdaptorError {
	return new AdaptorError({code, what, where: {path}, remedy, cause});
}

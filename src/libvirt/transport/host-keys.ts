/**
 * Decides which host key a connection accepts, and explains a refusal to the operator. Reads the known_hosts file. Adds
 * a key that known_hosts_verify=auto has accepted, like accept-new of OpenSSH: only the first key of a host is accepted
 * without verification. Knows nothing about connections.
 */
import {mkdir, open, readFile} from 'node:fs/promises';
import {dirname} from 'node:path';
import {AdaptorError, toError} from '../../core/errors.ts';
import {
	fingerprint,
	hostName,
	keyTypeOf,
	knownHostsLine,
	knownKeyTypes,
	parseKnownHosts,
	verifyHostKey,
	type KnownHosts,
	type KnownLine,
} from './known-hosts.ts';
import {expandHome} from './ssh-identities.ts';
import type {SshUri} from '../uri.ts';

export interface HostKeyCheck {
	/** The signature algorithms to offer; those of the known keys of the host come first. */
	readonly algorithms: readonly HostKeyAlgorithm[];
	/**
	 * @param key in wire format
	 * @throws HostKeyError
	 * @returns undefined if the key is known
	 */
	accept(key: Buffer): Unproven | undefined;
}

/** A key that was accepted although it is not known. */
export interface Unproven {
	/** The text of the warning. */
	readonly warning: string;
	/**
	 * Adds the key to the known_hosts file. Absent if the key must not be stored. Call it after the host has proven
	 * that it owns the key.
	 */
	readonly record?: () => Promise<{readonly path: string}>;
}

/** The host key could not be verified. Retrying does not help. */
export class HostKeyError extends AdaptorError {
	override readonly name = 'HostKeyError';
}

/** As in OpenSSH 8.8 and later, `ssh-rsa`, which signs with SHA-1, is not offered. */
const algorithmsOfType = {
	'ssh-ed25519': ['ssh-ed25519'],
	'ecdsa-sha2-nistp256': ['ecdsa-sha2-nistp256'],
	'ecdsa-sha2-nistp384': ['ecdsa-sha2-nistp384'],
	'ecdsa-sha2-nistp521': ['ecdsa-sha2-nistp521'],
	'ssh-rsa': ['rsa-sha2-512', 'rsa-sha2-256'],
} as const;
export type HostKeyAlgorithm = (typeof algorithmsOfType)[keyof typeof algorithmsOfType][number];

/** @throws AdaptorError 'permission-denied' if the known_hosts file exists and cannot be read */
export async function hostKeyCheck(uri: SshUri, home: string, signal: AbortSignal): Promise<HostKeyCheck> {
	if (uri.hostKeys === 'ignore') {
		return {
			algorithms: algorithmsFor([]),
			accept: key => ({warning: `the host key is not verified (no_verify=1); it is ${describeKey(key)}`}),
		};
	}

	const path = uri.knownHosts === undefined ? `${home}/.ssh/known_hosts` : expandHome(uri.knownHosts, home);
	const known = await readKnownHosts(path, signal);
	return {
		algorithms: algorithmsFor(known === undefined ? [] : knownKeyTypes(known, uri.host, uri.port)),
		accept: key => judge(uri, path, known, key),
	};
}

function algorithmsFor(keyTypes: readonly string[]): readonly HostKeyAlgorithm[] {
	const entries = Object.entries(algorithmsOfType);
	return [
		...entries.filter(([type]) => keyTypes.includes(type)),
		...entries.filter(([type]) => !keyTypes.includes(type)),
	].flatMap(([, algorithms]) => algorithms);
}

async function readKnownHosts(path: string, signal: AbortSignal): Promise<KnownHosts | undefined> {
	try {
		return parseKnownHosts(await readFile(path, {encoding: 'utf8', signal}));
	} catch (error) {
		signal.throwIfAborted();
		if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
			return undefined;
		}

		throw new AdaptorError({
			code: 'permission-denied',
			what: 'Could not read the known_hosts file',
			where: {path},
			remedy: 'Make it readable, or name another one with known_hosts= in the URI.',
			cause: error,
		});
	}
}

function judge(uri: SshUri, path: string, known: KnownHosts | undefined, key: Buffer): Unproven | undefined {
	const {verdict, lines} = verifyHostKey(known ?? {entries: [], malformed: []}, uri.host, uri.port, key);
	const where = {host: uri.host, port: uri.port, offered: describeKey(key), knownHosts: path};
	const name = hostName(uri.host, uri.port);
	const scan = `ssh-keyscan ${uri.port === 22 ? '' : `-p ${uri.port} `}${uri.host} >> ${path}`;
	const compare = 'Compare the fingerprint with that of "ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub" on the host';
	switch (verdict) {
		case 'trusted':
			return undefined;
		case 'unknown': {
			if (uri.hostKeys === 'auto') {
				return {
					warning: `the host key is unknown and was accepted (known_hosts_verify=auto); it is ${describeKey(key)}`,
					record: async () => record(uri, path, key),
				};
			}

			const why = [
				known === undefined ? ', and the known_hosts file does not exist' : '',
				lines.length > 0
					? `, and the certificate authority of ${describeLines(lines)} cannot help: host certificates are not supported`
					: '',
				known !== undefined && known.malformed.length > 0
					? `; malformed: ${known.malformed.map(({line, reason}) => `line ${line} (${reason})`).join(', ')}`
					: '',
			];
			throw new HostKeyError({
				code: 'unauthenticated',
				what: `The ssh host key of ${name} is unknown${why.join('')}`,
				where,
				remedy: `${compare}; if it is the same, add the key: "${scan}". Or turn off the check with no_verify=1 in the URI.`,
			});
		}

		case 'changed':
			throw new HostKeyError({
				code: 'unauthenticated',
				what: `The ssh host key of ${name} has changed: ${describeLines(lines)} has another key. The host may be impersonated, or it was reinstalled`,
				where,
				remedy: `${compare}. If it is the same, remove the old key: "ssh-keygen -f ${path} -R '${name}'", and add the new one: "${scan}".`,
			});
		case 'revoked':
			throw new HostKeyError({
				code: 'unauthenticated',
				what: `The ssh host key of ${name} is revoked by ${describeLines(lines)}`,
				where,
				remedy: 'Create a new host key on the host: the current one is revoked and must not be trusted.',
			});
	}
}

/** @throws AdaptorError 'failed-precondition' if the file cannot be read or written */
async function record({host, port}: SshUri, path: string, key: Buffer): Promise<{readonly path: string}> {
	try {
		await mkdir(dirname(path), {recursive: true, mode: 0o700});
		// Append mode, because other processes may add lines at the same time.
		const file = await open(path, 'a+', 0o600);
		try {
			const text = await file.readFile('utf8');
			const known = parseKnownHosts(text);
			// Another connection may have added the key after the first lookup.
			if (verifyHostKey(known, host, port, key).verdict === 'unknown') {
				await file.appendFile(
					`${text === '' || text.endsWith('\n') ? '' : '\n'}${knownHostsLine(known, host, port, key)}\n`,
				);
				await file.sync();
			}
		} finally {
			await file.close();
		}
	} catch (error) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `Could not add the ssh host key to the known_hosts file: ${toError(error).message}`,
			where: {path},
			remedy: 'Add it by hand, or name a writable file with known_hosts= in the URI: until the key is stored, each connection accepts any key.',
			cause: error,
		});
	}

	return {path};
}

function describeKey(key: Buffer): string {
	return `${keyTypeOf(key) ?? 'unknown type'} ${fingerprint(key)}`;
}

function describeLines(lines: readonly KnownLine[]): string {
	return lines.map(({line, keyType}) => `line ${line} (${keyType})`).join(', ');
}

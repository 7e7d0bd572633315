/**
 * Which host key a connection accepts, and what an operator is told about one that it does not.
 * Reads the known_hosts file and never writes it. Knows nothing of connections.
 */
import {readFile} from 'node:fs/promises';
import {AdaptorError} from '../errors.ts';
import {fingerprint, hostName, keyTypeOf, knownKeyTypes, parseKnownHosts, verifyHostKey, type KnownHosts, type KnownLine} from './known-hosts.ts';
import {expandHome} from './ssh-identities.ts';
import type {SshUri} from './uri.ts';

export interface HostKeyCheck {
	/** The signature algorithms to offer, those of the keys that the host is known by first. */
	readonly algorithms: readonly HostKeyAlgorithm[];
	/**
	 * @param key as on the wire
	 * @throws HostKeyError
	 * @returns what is worth a warning about a key that was accepted
	 */
	accept(key: Buffer): string | undefined;
}

/** The host did not prove to be the one that was meant. Trying again does not help. */
export class HostKeyError extends AdaptorError {
	override readonly name = 'HostKeyError';
}

/** As OpenSSH 8.8 and later: `ssh-rsa`, which signs with SHA-1, is not offered. */
const algorithmsOfType = {
	'ssh-ed25519': ['ssh-ed25519'],
	'ecdsa-sha2-nistp256': ['ecdsa-sha2-nistp256'],
	'ecdsa-sha2-nistp384': ['ecdsa-sha2-nistp384'],
	'ecdsa-sha2-nistp521': ['ecdsa-sha2-nistp521'],
	'ssh-rsa': ['rsa-sha2-512', 'rsa-sha2-256'],
} as const;
export type HostKeyAlgorithm = (typeof algorithmsOfType)[keyof typeof algorithmsOfType][number];

/** @throws AdaptorError 'permission-denied' when the known_hosts file is there and cannot be read */
export async function hostKeyCheck(uri: SshUri, home: string, signal: AbortSignal): Promise<HostKeyCheck> {
	if (uri.hostKeys === 'ignore') {
		return {
			algorithms: algorithmsFor([]),
			accept: key => `the host key is not verified (no_verify=1); it is ${describeKey(key)}`,
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
	return [...entries.filter(([type]) => keyTypes.includes(type)), ...entries.filter(([type]) => !keyTypes.includes(type))].flatMap(([, algorithms]) => algorithms);
}

async function readKnownHosts(path: string, signal: AbortSignal): Promise<KnownHosts | undefined> {
	try {
		return parseKnownHosts(await readFile(path, {encoding: 'utf8', signal}));
	} catch (error) {
		signal.throwIfAborted();
		if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
			return undefined;
		}

		throw new AdaptorError({code: 'permission-denied', what: 'Could not read the known_hosts file', where: {path}, remedy: 'Make it readable, or name another one with known_hosts= in the URI.', cause: error});
	}
}

function judge(uri: SshUri, path: string, known: KnownHosts | undefined, key: Buffer): string | undefined {
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
				return `the host key is not known and accepted all the same (known_hosts_verify=auto); it is ${describeKey(key)}`;
			}

			const why = [
				known === undefined ? ', and there is no known_hosts file' : '',
				lines.length > 0 ? `, and the certificate authority of ${describeLines(lines)} cannot help: host certificates are not supported` : '',
				known !== undefined && known.malformed.length > 0 ? `; malformed: ${known.malformed.map(({line, reason}) => `line ${line} (${reason})`).join(', ')}` : '',
			];
			throw new HostKeyError({
				code: 'unauthenticated',
				what: `The ssh host key of ${name} is not known${why.join('')}`,
				where,
				remedy: `${compare}; if it is the same, add the key: "${scan}". Or give up the check with no_verify=1 in the URI.`,
			});
		}

		case 'changed':
			throw new HostKeyError({
				code: 'unauthenticated',
				what: `The ssh host key of ${name} is not the one that is known: ${describeLines(lines)} says otherwise. Someone may be impersonating the host, or it was installed anew`,
				where,
				remedy: `${compare}. If it is the same, remove the old key: "ssh-keygen -f ${path} -R '${name}'", and add the new one: "${scan}".`,
			});
		case 'revoked':
			throw new HostKeyError({
				code: 'unauthenticated',
				what: `The ssh host key of ${name} is revoked by ${describeLines(lines)}`,
				where,
				remedy: 'Give the host a new key: this one is not to be trusted any more.',
			});
	}
}

function describeKey(key: Buffer): string {
	return `${keyTypeOf(key) ?? 'unknown type'} ${fingerprint(key)}`;
}

function describeLines(lines: readonly KnownLine[]): string {
	return lines.map(({line, keyType}) => `line ${line} (${keyType})`).join(', ');
}

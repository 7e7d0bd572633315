/**
 * Parses known_hosts of OpenSSH: the known keys of each host. Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Knows
 * neither files nor connections, and does not decide what to do about an unknown key.
 */
import {createHash, createHmac, randomBytes} from 'node:crypto';
import {matchesGlob} from '../glob.ts';

export interface KnownHosts {
	readonly entries: readonly KnownHost[];
	/** Malformed lines, counted from 1. They are ignored, so that one bad line does not make all hosts unreachable. */
	readonly malformed: ReadonlyArray<{readonly line: number; readonly reason: string}>;
}

export interface KnownHost {
	/** Counted from 1. */
	readonly line: number;
	readonly marker: 'cert-authority' | 'revoked' | undefined;
	readonly hosts: HostMatcher;
	/** For example `ssh-ed25519`. */
	readonly keyType: string;
	/** In wire format (RFC 4253, section 6.6). */
	readonly key: Buffer;
}

export type HostMatcher =
	| {readonly kind: 'patterns'; readonly allow: readonly string[]; readonly deny: readonly string[]}
	| {readonly kind: 'hashed'; readonly salt: Buffer; readonly hash: Buffer};

/** A line and the type of its key, for messages to the operator. */
export type KnownLine = Pick<KnownHost, 'line' | 'keyType'>;

export type HostKeyVerdict =
	| {readonly verdict: 'trusted'; readonly lines: readonly KnownLine[]}
	/**
	 * No key is known. `lines` are those of certificate authorities; they cannot help, because ssh2 does not support
	 * host certificates.
	 */
	| {readonly verdict: 'unknown'; readonly lines: readonly KnownLine[]}
	/** Other keys are known, of this type or another. Must never be accepted silently. */
	| {readonly verdict: 'changed'; readonly lines: readonly KnownLine[]}
	| {readonly verdict: 'revoked'; readonly lines: readonly KnownLine[]};

/** Never throws. */
export function parseKnownHosts(text: string): KnownHosts {
	const entries: KnownHost[] = [];
	const malformed: Array<{line: number; reason: string}> = [];
	for (const [index, raw] of text.split('\n').entries()) {
		const trimmed = raw.trim();
		if (trimmed === '' || trimmed.startsWith('#')) {
			continue;
		}

		const line = index + 1;
		const parsed = parseLine(trimmed);
		if (typeof parsed === 'string') {
			malformed.push({line, reason: parsed});
		} else {
			entries.push({line, ...parsed});
		}
	}

	return {entries, malformed};
}

/** @param key the public key of the host in wire format */
export function verifyHostKey(known: KnownHosts, host: string, port: number, key: Buffer): HostKeyVerdict {
	const verdict = judge(entriesOf(known, hostName(host, port)), key);
	if (verdict.verdict !== 'unknown' || port === 22) {
		return verdict;
	}

	// As in OpenSSH: a key that is known for the host at its default port is valid at another port. A different key
	// there proves nothing.
	const usual = judge(entriesOf(known, hostName(host, 22)), key);
	return usual.verdict === 'trusted' || usual.verdict === 'revoked' ? usual : verdict;
}

/** The types of the known keys of a host, without duplicates. */
export function knownKeyTypes(known: KnownHosts, host: string, port: number): readonly string[] {
	const named = [hostName(host, port), hostName(host, 22)].map(name =>
		entriesOf(known, name).filter(({marker}) => marker === undefined),
	);
	return [...new Set((named.find(entries => entries.length > 0) ?? []).map(({keyType}) => keyType))];
}

/**
 * The known_hosts line for this host and key, without a newline. The host is hashed if the file contains hashed hosts.
 * @param key in wire format
 */
export function knownHostsLine({entries}: KnownHosts, host: string, port: number, key: Buffer): string {
	const name = hostName(host, port);
	return `${entries.some(({hosts}) => hosts.kind === 'hashed') ? hashed(name) : name} ${keyTypeOf(key) ?? ''} ${key.toString('base64')}`;
}

function hashed(name: string): string {
	const salt = randomBytes(20);
	return `|1|${salt.toString('base64')}|${createHmac('sha1', salt).update(name).digest('base64')}`;
}

/** The format of ssh-keygen -l: `SHA256:` and base64 without padding. */
export function fingerprint(key: Buffer): string {
	return `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`;
}

/** The type inside a public key, or undefined if it is not a key. */
export function keyTypeOf(key: Buffer): string | undefined {
	if (key.length < 4) {
		return undefined;
	}

	const length = key.readUInt32BE(0);
	return length > 0 && length <= 64 && key.length > 4 + length ? key.toString('latin1', 4, 4 + length) : undefined;
}

/** A host in the format of known_hosts: lower case, with the port unless it is 22. */
export function hostName(host: string, port: number): string {
	return port === 22 ? host.toLowerCase() : `[${host.toLowerCase()}]:${port}`;
}

function judge(entries: readonly KnownHost[], key: Buffer): HostKeyVerdict {
	const revoked = entries.filter(entry => entry.marker === 'revoked' && entry.key.equals(key));
	if (revoked.length > 0) {
		return {verdict: 'revoked', lines: revoked};
	}

	const own = entries.filter(({marker}) => marker === undefined);
	const same = own.filter(entry => entry.key.equals(key));
	if (same.length > 0) {
		return {verdict: 'trusted', lines: same};
	}

	return own.length > 0
		? {verdict: 'changed', lines: own}
		: {verdict: 'unknown', lines: entries.filter(({marker}) => marker === 'cert-authority')};
}

function entriesOf(known: KnownHosts, name: string): readonly KnownHost[] {
	return known.entries.filter(({hosts}) => matches(hosts, name));
}

function matches(hosts: HostMatcher, name: string): boolean {
	switch (hosts.kind) {
		case 'hashed':
			return createHmac('sha1', hosts.salt).update(name).digest().equals(hosts.hash);
		case 'patterns':
			return (
				hosts.allow.some(pattern => matchesGlob(pattern, name)) &&
				!hosts.deny.some(pattern => matchesGlob(pattern, name))
			);
	}
}

function parseLine(line: string): Omit<KnownHost, 'line'> | string {
	const words = line.split(/[ \t]+/);
	const markerWord = words[0]?.startsWith('@') ? words.shift() : undefined;
	if (markerWord !== undefined && markerWord !== '@cert-authority' && markerWord !== '@revoked') {
		return `unknown marker ${markerWord}`;
	}

	const [hostsWord, keyType, base64] = words;
	if (hostsWord === undefined || keyType === undefined || base64 === undefined) {
		return 'fewer than three words (host, key type and key)';
	}

	if (!/^[A-Za-z\d+/]+={0,2}$/.test(base64)) {
		return 'the key is not base64';
	}

	const key = Buffer.from(base64, 'base64');
	if (keyTypeOf(key) !== keyType) {
		return `the key is not of the type ${keyType} that the line names`;
	}

	const hosts = parseHosts(hostsWord);
	return typeof hosts === 'string'
		? hosts
		: {
				marker: markerWord === undefined ? undefined : markerWord === '@revoked' ? 'revoked' : 'cert-authority',
				hosts,
				keyType,
				key,
			};
}

function parseHosts(word: string): HostMatcher | string {
	if (word.startsWith('|')) {
		const {salt, hash} =
			/^\|1\|(?<salt>[A-Za-z\d+/]+={0,2})\|(?<hash>[A-Za-z\d+/]+={0,2})$/.exec(word)?.groups ?? {};
		if (salt === undefined || hash === undefined) {
			return 'the hashed host is not of the form |1|salt|hash';
		}

		return {kind: 'hashed', salt: Buffer.from(salt, 'base64'), hash: Buffer.from(hash, 'base64')};
	}

	const patterns = word
		.toLowerCase()
		.split(',')
		.filter(pattern => pattern !== '');
	return {
		kind: 'patterns',
		allow: patterns.filter(pattern => !pattern.startsWith('!')),
		deny: patterns.filter(pattern => pattern.startsWith('!')).map(pattern => pattern.slice(1)),
	};
}

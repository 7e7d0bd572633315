/**
 * What the administrator may say about TLS, and what it means to Node: TLS_MIN_VERSION, TLS_CIPHER_SUITES,
 * TLS_SKIP_VERIFY. Pure. Names are IANA's, as Go spells them, because the same values go to the VM; OpenSSL's names are
 * Node's business and ours.
 */
import type {SecureContextOptions} from 'node:tls';
import {AdaptorError} from '../core/errors.ts';
import type {ForwarderTls} from '../sandbox/ports.ts';

export type TlsMinVersion = NonNullable<ForwarderTls['minVersion']>;

export interface TlsOptions {
	/** TLS 1.2 when absent. */
	readonly minVersion?: TlsMinVersion;
	/** IANA names, as of `parseCipherSuites`; Node's own choice when absent. */
	readonly cipherSuites?: readonly string[];
	/** Takes whoever answers for the VM. For tests of an installation only. */
	readonly skipVerify?: boolean;
}

/**
 * The suites that Go's crypto/tls (the VM's end) and OpenSSL 3 as Node builds it (ours) both have, IANA name to OpenSSL
 * name. Go has RC4 and 3DES too, Node has not.
 */
const openSslNames: Readonly<Record<string, string>> = {
	TLS_AES_128_GCM_SHA256: 'TLS_AES_128_GCM_SHA256',
	TLS_AES_256_GCM_SHA384: 'TLS_AES_256_GCM_SHA384',
	TLS_CHACHA20_POLY1305_SHA256: 'TLS_CHACHA20_POLY1305_SHA256',
	TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: 'ECDHE-ECDSA-AES128-GCM-SHA256',
	TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: 'ECDHE-RSA-AES128-GCM-SHA256',
	TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: 'ECDHE-ECDSA-AES256-GCM-SHA384',
	TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384: 'ECDHE-RSA-AES256-GCM-SHA384',
	TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: 'ECDHE-ECDSA-CHACHA20-POLY1305',
	TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256: 'ECDHE-RSA-CHACHA20-POLY1305',
	// The same two under the names that Kubernetes' own options still take.
	TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305: 'ECDHE-ECDSA-CHACHA20-POLY1305',
	TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305: 'ECDHE-RSA-CHACHA20-POLY1305',
	TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256: 'ECDHE-ECDSA-AES128-SHA256',
	TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256: 'ECDHE-RSA-AES128-SHA256',
	TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA: 'ECDHE-ECDSA-AES128-SHA',
	TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA: 'ECDHE-RSA-AES128-SHA',
	TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA: 'ECDHE-ECDSA-AES256-SHA',
	TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA: 'ECDHE-RSA-AES256-SHA',
	TLS_RSA_WITH_AES_128_GCM_SHA256: 'AES128-GCM-SHA256',
	TLS_RSA_WITH_AES_256_GCM_SHA384: 'AES256-GCM-SHA384',
	TLS_RSA_WITH_AES_128_CBC_SHA256: 'AES128-SHA256',
	TLS_RSA_WITH_AES_128_CBC_SHA: 'AES128-SHA',
	TLS_RSA_WITH_AES_256_CBC_SHA: 'AES256-SHA',
};
const tls13Names = Object.keys(openSslNames).filter(name => !name.includes('_WITH_'));

/** IANA names that TLS_CIPHER_SUITES may hold. */
export const knownCipherSuites: readonly string[] = Object.keys(openSslNames);

/** @throws 'invalid-argument' for anything but `VersionTLS12` and `VersionTLS13` */
export function parseTlsMinVersion(text: string): TlsMinVersion {
	const version = text.trim();
	if (version === 'VersionTLS12' || version === 'VersionTLS13') {
		return version;
	}

	throw new AdaptorError({
		code: 'invalid-argument',
		what: 'Not a TLS version that can be asked for',
		where: {value: text},
		remedy: 'Use VersionTLS12 or VersionTLS13.',
	});
}

/**
 * @param text IANA names separated by commas; blanks around them and empty entries are ignored
 * @returns the names, each once, in their order
 * @throws 'invalid-argument' that names every unknown one and lists the known ones
 */
export function parseCipherSuites(text: string): readonly string[] {
	const names = [
		...new Set(
			text
				.split(',')
				.map(name => name.trim())
				.filter(name => name !== ''),
		),
	];
	const unknown = names.filter(name => !Object.hasOwn(openSslNames, name));
	if (unknown.length > 0) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Unknown TLS cipher suites',
			where: {suites: unknown.join(', ')},
			remedy: `Known are, by their IANA names: ${knownCipherSuites.join(', ')}.`,
		});
	}

	return names;
}

/** What no single option can know. @throws 'invalid-argument' */
export function checkTlsOptions({minVersion, cipherSuites = []}: TlsOptions): void {
	if (minVersion === 'VersionTLS13' && cipherSuites.length > 0) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Cipher suites cannot be chosen when the minimum is TLS 1.3: its suites are fixed',
			where: {minVersion, suites: cipherSuites.join(', ')},
			remedy: 'Remove TLS_CIPHER_SUITES, or set TLS_MIN_VERSION to VersionTLS12.',
		});
	}
}

/** The options in Node's words. */
export function secureContextOptions(options: TlsOptions): Pick<SecureContextOptions, 'minVersion' | 'ciphers'> {
	checkTlsOptions(options);
	const {minVersion, cipherSuites = []} = options;
	return {
		minVersion: minVersion === 'VersionTLS13' ? 'TLSv1.3' : 'TLSv1.2',
		...(cipherSuites.length > 0 ? {ciphers: openSslCiphers(cipherSuites)} : {}),
	};
}

/**
 * Without a TLS 1.3 name Node would rule TLS 1.3 out. In Go the list governs TLS 1.2 only, and both ends have to agree
 * on that.
 */
function openSslCiphers(names: readonly string[]): string {
	const all = names.some(name => tls13Names.includes(name)) ? names : [...tls13Names, ...names];
	return [...new Set(all.map(name => openSslNames[name]))].join(':');
}

/** The options in the words of the VM's forwarder. */
export function forwarderOptions({
	minVersion,
	cipherSuites = [],
}: TlsOptions): Pick<ForwarderTls, 'minVersion' | 'cipherSuites'> {
	return {
		...(minVersion === undefined ? {} : {minVersion}),
		...(cipherSuites.length > 0 ? {cipherSuites} : {}),
	};
}

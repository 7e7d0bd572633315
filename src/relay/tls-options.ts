/**
 * Converts the TLS settings TLS_MIN_VERSION, TLS_CIPHER_SUITES and TLS_SKIP_VERIFY to options of Node and of the VM.
 * Pure. Settings use the IANA names that Go uses, because the same values go to the VM; Node uses OpenSSL names.
 */
import type {SecureContextOptions} from 'node:tls';
import {AdaptorError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import type {ForwarderTls} from '../sandbox/ports.ts';

export type TlsMinVersion = NonNullable<ForwarderTls['minVersion']>;

export interface TlsOptions {
	/** TLS 1.2 when absent. */
	readonly minVersion?: TlsMinVersion;
	/** IANA names from `parseCipherSuites`; the defaults of Node if absent. */
	readonly cipherSuites?: readonly string[];
	/** Accepts any server as the VM. For tests of an installation only. */
	readonly skipVerify?: boolean;
}

/**
 * The cipher suites that both Go's crypto/tls (in the VM) and OpenSSL 3 in Node support: IANA name to OpenSSL name. Go
 * also supports RC4 and 3DES, Node does not.
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
	// Older names of the same two suites, which Kubernetes options still accept.
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

/** IANA names that TLS_CIPHER_SUITES accepts. */
export const knownCipherSuites: readonly string[] = Object.keys(openSslNames);

/** @throws 'invalid-argument' for anything but `VersionTLS12` and `VersionTLS13` */
export function parseTlsMinVersion(text: string): TlsMinVersion {
	const version = text.trim();
	if (version === 'VersionTLS12' || version === 'VersionTLS13') {
		return version;
	}

	throw new AdaptorError({
		code: 'invalid-argument',
		what: 'Unsupported TLS version',
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
			remedy: `Use these IANA names: ${knownCipherSuites.join(', ')}.`,
		});
	}

	return names;
}

/** Checks the combination of options. @throws 'invalid-argument' */
export function checkTlsOptions({minVersion, cipherSuites = []}: TlsOptions): void {
	if (minVersion === 'VersionTLS13' && cipherSuites.length > 0) {
		throw new AdaptorError({
			code: 'invalid-argument',
			what: 'Cipher suites cannot be set if the minimum version is TLS 1.3, whose suites are fixed',
			where: {minVersion, suites: cipherSuites.join(', ')},
			remedy: 'Remove TLS_CIPHER_SUITES, or set TLS_MIN_VERSION to VersionTLS12.',
		});
	}
}

/** The options for Node. */
export function secureContextOptions(options: TlsOptions): Pick<SecureContextOptions, 'minVersion' | 'ciphers'> {
	checkTlsOptions(options);
	const {minVersion, cipherSuites = []} = options;
	return {
		minVersion: minVersion === 'VersionTLS13' ? 'TLSv1.3' : 'TLSv1.2',
		...(cipherSuites.length > 0 ? {ciphers: openSslCiphers(cipherSuites)} : {}),
	};
}

/**
 * In Go, the list only applies to TLS 1.2, and both ends must behave the same. Without the TLS 1.3 names, Node would
 * disable TLS 1.3.
 */
function openSslCiphers(names: readonly string[]): string {
	const all = names.some(name => tls13Names.includes(name)) ? names : [...tls13Names, ...names];
	return [...new Set(all.map(name => openSslNames[name]))].join(':');
}

/** The options for the forwarder in the VM. */
export function forwarderOptions({
	minVersion,
	cipherSuites = [],
}: TlsOptions): Pick<ForwarderTls, 'minVersion' | 'cipherSuites'> {
	return {
		...present({minVersion}),
		...(cipherSuites.length > 0 ? {cipherSuites} : {}),
	};
}

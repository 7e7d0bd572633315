/**
 * The certificates for connections to VMs: an own CA that signs a server certificate per VM, and a client certificate
 * that the VMs trust. Custom files can replace either. Knows directories and files, but no sockets.
 */
import {createPrivateKey, X509Certificate} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {AdaptorError} from '../core/errors.ts';
import {fileProblem} from '../core/file-error.ts';
import {Secret, type Logger} from '../core/log.ts';
import type {ForwarderTls} from '../sandbox/ports.ts';
import {makeServerCertificate, type KeyPair} from './certificates.ts';
import {keepIdentity} from './identity-file.ts';

/** The name in a custom server certificate, which is part of an image and shared by many VMs. */
const sharedServerName = 'podvm-server';

export interface RelayIdentity {
	/** PEM of the CAs for server certificates. A server with a certificate for the expected name is the VM. */
	readonly serverCa: string;
	readonly client: KeyPair;
	/** The required name in the certificate of the VM. */
	serverName(instanceName: string): string;
	/** Keys and certificates for one VM. */
	issue(instanceName: string): Promise<Pick<ForwarderTls, 'serverKey' | 'serverCert' | 'clientCa'>>;
}

/** Paths as of CACERT_FILE, CERT_FILE, CERT_KEY. */
export interface IdentityFiles {
	readonly caCert?: string;
	readonly cert?: string;
	readonly key?: string;
}

export interface IdentityOptions {
	/**
	 * Directory of the keys that this program creates (mode 0700), e.g. `/run/peerpod/tls`. Created if missing; not
	 * used if custom files replace all keys.
	 */
	readonly directory: string;
	readonly files?: IdentityFiles;
	readonly log: Logger;
	readonly now?: () => Date;
}

/**
 * Loads the custom files, and loads or creates the rest.
 * With a custom CA, the images contain the server certificate and the trusted CA, and nothing is sent to the VMs.
 * With only a custom client certificate, the own CA signs for the VMs, and the VMs trust that client certificate.
 * @throws 'failed-precondition' with the files that cannot be read, are not PEM, or do not match
 */
export async function openIdentity({
	directory,
	files = {},
	log,
	now = () => new Date(),
}: IdentityOptions): Promise<RelayIdentity> {
	checkCombination(files);
	const serverCa = files.caCert === undefined ? undefined : await readCertificates(files.caCert, 'CACERT_FILE');
	const client =
		files.cert === undefined || files.key === undefined
			? undefined
			: await readKeyPair(files.cert, files.key, log, now());
	if (serverCa !== undefined && client !== undefined) {
		return {
			serverCa,
			client,
			serverName: () => sharedServerName,
			issue: async () => ({}),
		};
	}

	const own = await keepIdentity({directory, log, now});
	const clientPair = client ?? own.client;
	return {
		serverCa: own.ca.cert,
		client: clientPair,
		serverName: instanceName => instanceName,
		async issue(instanceName) {
			const server = await makeServerCertificate(instanceName, own.ca, validityOf(own.ca));
			return {serverKey: server.key, serverCert: server.cert, clientCa: clientPair.cert};
		},
	};
}

/**
 * A server certificate has the same validity as its CA. It is back-dated like the CA, because the clock of the VM may
 * be behind.
 */
function validityOf({cert}: KeyPair): {notBefore: Date; notAfter: Date} {
	const {validFromDate, validToDate} = new X509Certificate(cert);
	return {notBefore: validFromDate, notAfter: validToDate};
}

function checkCombination({caCert, cert, key}: IdentityFiles): void {
	if ((cert === undefined) !== (key === undefined)) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'The client certificate or its key is missing',
			where: cert === undefined ? {CERT_KEY: key ?? ''} : {CERT_FILE: cert},
			remedy: 'Set both CERT_FILE and CERT_KEY, or neither.',
		});
	}

	if (caCert !== undefined && cert === undefined) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'With a custom CA, the VMs do not trust a client certificate that is created here',
			where: {CACERT_FILE: caCert},
			remedy: 'Set CERT_FILE and CERT_KEY to a client certificate that the VM image trusts, or unset CACERT_FILE.',
		});
	}
}

async function readKeyPair(certFile: string, keyFile: string, log: Logger, now: Date): Promise<KeyPair> {
	const cert = await readCertificates(certFile, 'CERT_FILE');
	const key = await readText(keyFile, 'CERT_KEY');
	const leaf = new X509Certificate(cert);
	let belongs;
	try {
		belongs = leaf.checkPrivateKey(createPrivateKey(key));
	} catch (error) {
		throw unusable('CERT_KEY', keyFile, 'is not a PEM private key without a passphrase', error);
	}

	if (!belongs) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'The client certificate and the private key do not match',
			where: {CERT_FILE: certFile, CERT_KEY: keyFile},
			remedy: 'Use the private key of the certificate; the client certificate must be the first in its file.',
		});
	}

	if (leaf.validToDate < now || leaf.validFromDate > now) {
		log.warn(
			{path: certFile, certificate: leaf.subject, reason: `valid from ${leaf.validFrom} to ${leaf.validTo}`},
			'client certificate is expired or not valid yet',
		);
	}

	return {cert, key: new Secret(key)};
}

async function readCertificates(file: string, variable: string): Promise<string> {
	const text = await readText(file, variable);
	const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
	try {
		for (const block of blocks) {
			new X509Certificate(block);
		}
	} catch (error) {
		throw unusable(variable, file, 'contains an unreadable certificate', error);
	}

	if (blocks.length === 0) {
		throw unusable(variable, file, 'contains no PEM certificate');
	}

	return `${blocks.join('\n')}\n`;
}

async function readText(file: string, variable: string): Promise<string> {
	try {
		return await readFile(file, 'utf8');
	} catch (error) {
		const {reason, where, remedy} = await fileProblem(error, file);
		const {path, ...rest} = where;
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `The file of ${variable} cannot be read: ${reason}`,
			where: {[variable]: file, ...(path === file ? rest : where)},
			remedy: remedy ?? readableFiles,
			cause: error,
		});
	}
}

const readableFiles =
	'Set CACERT_FILE, CERT_FILE and CERT_KEY to readable PEM files, for example from a secret mounted at /etc/certificates.';

function unusable(variable: string, file: string, problem: string, cause?: unknown): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `The file of ${variable} ${problem}`,
		where: {[variable]: file},
		remedy: readableFiles,
		cause,
	});
}

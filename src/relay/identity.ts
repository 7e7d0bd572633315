/**
 * Who we are to the VMs, and how we know them: a CA of our own that signs a server certificate per VM and a client
 * certificate that the VMs are told to trust, or the administrator's files in place of either. Knows directories and
 * files; knows no sockets.
 */
import {createPrivateKey, X509Certificate} from 'node:crypto';
import {readFile} from 'node:fs/promises';
import {AdaptorError} from '../core/errors.ts';
import {Secret, type Logger} from '../core/log.ts';
import type {ForwarderTls} from '../sandbox/ports.ts';
import {makeServerCertificate, type KeyPair} from './certificates.ts';
import {keepIdentity} from './identity-file.ts';

/** What a certificate of the administrator's, baked into an image that serves many VMs, is issued for. */
const sharedServerName = 'podvm-server';

export interface RelayIdentity {
	/** PEM: whoever serves with a certificate signed by one of these, for the right name, is the VM. */
	readonly serverCa: string;
	readonly client: KeyPair;
	/** The name that the VM's certificate must have. */
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
	 * Where our own keys are kept (0700), e.g. `/run/peerpod/tls`: made when missing, untouched when no key of ours is
	 * needed.
	 */
	readonly directory: string;
	readonly files?: IdentityFiles;
	readonly log: Logger;
	readonly now?: () => Date;
}

/**
 * Loads the administrator's files and makes or takes up the rest.
 * With a CA of the administrator's, VMs bring their own server certificate and trust: nothing of ours goes to them.
 * With a client certificate alone, our CA still signs for the VMs, and they are told to trust that certificate.
 * @throws 'failed-precondition' naming the files that cannot be read, are not PEM, or do not belong together
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
 * A server certificate lives as long as its CA: back-dated like it, because the VM's clock may be behind ours, and
 * never outliving it.
 */
function validityOf({cert}: KeyPair): {notBefore: Date; notAfter: Date} {
	const {validFromDate, validToDate} = new X509Certificate(cert);
	return {notBefore: validFromDate, notAfter: validToDate};
}

function checkCombination({caCert, cert, key}: IdentityFiles): void {
	if ((cert === undefined) !== (key === undefined)) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'A client certificate needs its key, and a key its certificate',
			where: cert === undefined ? {CERT_KEY: key ?? ''} : {CERT_FILE: cert},
			remedy: 'Set both CERT_FILE and CERT_KEY, or neither.',
		});
	}

	if (caCert !== undefined && cert === undefined) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: 'With a CA of your own the VMs do not know the client certificate that would be made here',
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
			what: 'The client certificate and the private key do not belong together',
			where: {CERT_FILE: certFile, CERT_KEY: keyFile},
			remedy: 'Give the key that the certificate was made with; the client certificate comes first in its file.',
		});
	}

	if (leaf.validToDate < now || leaf.validFromDate > now) {
		log.warn(
			{path: certFile, certificate: leaf.subject, reason: `valid from ${leaf.validFrom} to ${leaf.validTo}`},
			'client certificate is not valid now',
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
		throw unusable(variable, file, 'holds a certificate that cannot be read', error);
	}

	if (blocks.length === 0) {
		throw unusable(variable, file, 'holds no PEM certificate');
	}

	return `${blocks.join('\n')}\n`;
}

async function readText(file: string, variable: string): Promise<string> {
	try {
		return await readFile(file, 'utf8');
	} catch (error) {
		throw unusable(variable, file, 'cannot be read', error);
	}
}

function unusable(variable: string, file: string, problem: string, cause?: unknown): AdaptorError {
	return new AdaptorError({
		code: 'failed-precondition',
		what: `The file of ${variable} ${problem}`,
		where: {[variable]: file},
		remedy: 'CACERT_FILE, CERT_FILE and CERT_KEY are PEM files that this process can read, e.g. mounted from a secret at /etc/certificates.',
		cause,
	});
}

/**
 * Creates the certificates for agent connections: a CA, server certificates signed by it, and a self-signed client
 * certificate. X.509 version 3 (RFC 5280), ECDSA P-256 with SHA-256, keys as PKCS#8, everything as PEM. This file
 * assembles the bytes to sign, and Node signs them (docs/adr/0005). Knows no files or sockets.
 */
import {
	createHash,
	createPrivateKey,
	generateKeyPair,
	randomBytes,
	sign,
	X509Certificate,
	type KeyObject,
} from 'node:crypto';
import {promisify} from 'node:util';
import {Secret} from '../core/log.ts';
import {
	bitString,
	explicit,
	implicit,
	isTrue,
	octetString,
	oid,
	sequence,
	setOf,
	time,
	unsigned,
	utf8String,
} from './der.ts';

export interface KeyPair {
	/** PEM. */
	readonly cert: string;
	/** PEM, PKCS#8. */
	readonly key: Secret<string>;
}

export interface Validity {
	readonly notBefore: Date;
	readonly notAfter: Date;
}

/** RFC 5280 (extensions, key purposes), RFC 5758 (the signature). */
const oids = {
	commonName: oid('2.5.4.3'),
	subjectKeyIdentifier: oid('2.5.29.14'),
	keyUsage: oid('2.5.29.15'),
	subjectAltName: oid('2.5.29.17'),
	basicConstraints: oid('2.5.29.19'),
	authorityKeyIdentifier: oid('2.5.29.35'),
	extKeyUsage: oid('2.5.29.37'),
	serverAuth: oid('1.3.6.1.5.5.7.3.1'),
	clientAuth: oid('1.3.6.1.5.5.7.3.2'),
	ecdsaWithSha256: oid('1.2.840.10045.4.3.2'),
};
const signatureAlgorithm = sequence(oids.ecdsaWithSha256);
const critical = isTrue();

/** A certificate authority without intermediate authorities. */
const caConstraints = extension(oids.basicConstraints, sequence(isTrue(), unsigned(Buffer.of(0))), critical);
const leafConstraints = extension(oids.basicConstraints, sequence(), critical);
/** Named bits (RFC 5280, 4.2.1.3), counted from the left: keyCertSign is 5, digitalSignature is 0. */
const signsCertificates = extension(oids.keyUsage, bitString(Buffer.of(0b0000_0100), 2), critical);
const signsHandshakes = extension(oids.keyUsage, bitString(Buffer.of(0b1000_0000), 7), critical);

export async function makeCa(commonName: string, validity: Validity): Promise<KeyPair> {
	const keys = await makeKeys();
	const name = distinguishedName(commonName);
	return certificate({
		subject: name,
		issuer: name,
		validity,
		keys,
		signingKey: keys.privateKey,
		extensions: [
			caConstraints,
			signsCertificates,
			extension(oids.subjectKeyIdentifier, octetString(keyIdentifier(keys.publicKey))),
		],
	});
}

/** A self-signed certificate. A server that trusts it as a CA accepts only this client. */
export async function makeClientCertificate(commonName: string, validity: Validity): Promise<KeyPair> {
	const keys = await makeKeys();
	const name = distinguishedName(commonName);
	return certificate({
		subject: name,
		issuer: name,
		validity,
		keys,
		signingKey: keys.privateKey,
		extensions: [leafConstraints, signsHandshakes, extension(oids.extKeyUsage, sequence(oids.clientAuth))],
	});
}

/**
 * @param dnsName common name and only subject alternative name, at most 63 characters
 * @param ca made by `makeCa`
 */
export async function makeServerCertificate(dnsName: string, ca: KeyPair, validity: Validity): Promise<KeyPair> {
	const keys = await makeKeys();
	const issuer = new X509Certificate(ca.cert);
	return certificate({
		subject: distinguishedName(dnsName),
		issuer: distinguishedName(issuer.subject.replace(/^CN=/, '')),
		validity,
		keys,
		signingKey: createPrivateKey(ca.key.reveal()),
		extensions: [
			leafConstraints,
			signsHandshakes,
			extension(oids.extKeyUsage, sequence(oids.serverAuth)),
			// GeneralName's dNSName is [2]; AuthorityKeyIdentifier's keyIdentifier is [0].
			extension(oids.subjectAltName, sequence(implicit(2, Buffer.from(dnsName)))),
			extension(oids.authorityKeyIdentifier, sequence(implicit(0, keyIdentifier(issuer.publicKey)))),
		],
	});
}

interface CertificateParts {
	readonly subject: Buffer;
	readonly issuer: Buffer;
	readonly validity: Validity;
	readonly keys: Keys;
	readonly signingKey: KeyObject;
	readonly extensions: readonly Buffer[];
}

/** RFC 5280, 4.1. */
function certificate({
	subject,
	issuer,
	validity: {notBefore, notAfter},
	keys,
	signingKey,
	extensions,
}: CertificateParts): KeyPair {
	const toBeSigned = sequence(
		explicit(0, unsigned(Buffer.of(2))),
		unsigned(randomBytes(16)),
		signatureAlgorithm,
		issuer,
		sequence(time(notBefore), time(notAfter)),
		subject,
		subjectPublicKeyInfo(keys.publicKey),
		explicit(3, sequence(...extensions)),
	);
	const bytes = sequence(toBeSigned, signatureAlgorithm, bitString(sign('sha256', toBeSigned, signingKey)));
	return {
		cert: new X509Certificate(bytes).toString(),
		key: new Secret(keys.privateKey.export({type: 'pkcs8', format: 'pem'}).toString()),
	};
}

interface Keys {
	readonly publicKey: KeyObject;
	readonly privateKey: KeyObject;
}

async function makeKeys(): Promise<Keys> {
	return promisify(generateKeyPair)('ec', {namedCurve: 'P-256'});
}

function distinguishedName(commonName: string): Buffer {
	return sequence(setOf(sequence(oids.commonName, utf8String(commonName))));
}

function extension(id: Buffer, content: Buffer, ...isCritical: readonly Buffer[]): Buffer {
	return sequence(id, ...isCritical, octetString(content));
}

function subjectPublicKeyInfo(key: KeyObject): Buffer {
	return key.export({type: 'spki', format: 'der'});
}

/** SHA-1 of the point (RFC 5280, 4.2.1.2, method 1), which is the last 65 bytes of the SPKI of a P-256 key. */
function keyIdentifier(key: KeyObject): Buffer {
	return createHash('sha1').update(subjectPublicKeyInfo(key).subarray(-65)).digest();
}

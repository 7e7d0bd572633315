/**
 * Makes the three kinds of certificate that the agent's connection needs: a CA, server certificates signed by it, and a client
 * certificate that vouches for itself. ECDSA P-256, keys as PKCS#8, everything as PEM. Knows no files and no sockets.
 */
import './reflect.ts';
import {createPrivateKey, KeyObject, webcrypto} from 'node:crypto';
import {
	AuthorityKeyIdentifierExtension, BasicConstraintsExtension, ExtendedKeyUsage, ExtendedKeyUsageExtension, KeyUsageFlags,
	KeyUsagesExtension, SubjectAlternativeNameExtension, SubjectKeyIdentifierExtension, X509Certificate, X509CertificateGenerator,
} from '@peculiar/x509';
import {Secret} from '../log.ts';

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

const ecdsaP256 = {name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256'} as const;

export async function makeCa(commonName: string, validity: Validity): Promise<KeyPair> {
	const keys = await makeKeys();
	const cert = await X509CertificateGenerator.createSelfSigned({
		name: [{CN: [commonName]}],
		...validity,
		keys,
		signingAlgorithm: ecdsaP256,
		extensions: [
			new BasicConstraintsExtension(true, 0, true),
			new KeyUsagesExtension(KeyUsageFlags.keyCertSign, true),
			await SubjectKeyIdentifierExtension.create(keys.publicKey),
		],
	});
	return pem(cert, keys);
}

/** A certificate that is its own trust anchor: whoever is given it as a CA accepts this one client and nobody else. */
export async function makeClientCertificate(commonName: string, validity: Validity): Promise<KeyPair> {
	const keys = await makeKeys();
	const cert = await X509CertificateGenerator.createSelfSigned({
		name: [{CN: [commonName]}],
		...validity,
		keys,
		signingAlgorithm: ecdsaP256,
		extensions: [
			new BasicConstraintsExtension(false, undefined, true),
			new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
			new ExtendedKeyUsageExtension([ExtendedKeyUsage.clientAuth]),
		],
	});
	return pem(cert, keys);
}

/** @param dnsName common name and only subject alternative name, at most 63 characters */
export async function makeServerCertificate(dnsName: string, ca: KeyPair, validity: Validity): Promise<KeyPair> {
	const keys = await makeKeys();
	const issuer = new X509Certificate(ca.cert);
	const cert = await X509CertificateGenerator.create({
		subject: [{CN: [dnsName]}],
		issuer: issuer.subject,
		...validity,
		publicKey: keys.publicKey,
		signingKey: createPrivateKey(ca.key.reveal()).toCryptoKey(ecdsaP256, false, ['sign']),
		signingAlgorithm: ecdsaP256,
		extensions: [
			new BasicConstraintsExtension(false, undefined, true),
			new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
			new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth]),
			new SubjectAlternativeNameExtension([{type: 'dns', value: dnsName}]),
			await AuthorityKeyIdentifierExtension.create(issuer.publicKey),
		],
	});
	return pem(cert, keys);
}

async function makeKeys(): Promise<webcrypto.CryptoKeyPair> {
	return webcrypto.subtle.generateKey(ecdsaP256, true, ['sign', 'verify']);
}

function pem(cert: X509Certificate, keys: webcrypto.CryptoKeyPair): KeyPair {
	const key = KeyObject.from(keys.privateKey).export({type: 'pkcs8', format: 'pem'});
	return {cert: `${cert.toString('pem')}\n`, key: new Secret(key.toString())};
}

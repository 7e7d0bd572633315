/** Explains certificates that are not valid yet to the operator: the clock may have been set back. */
import {X509Certificate} from 'node:crypto';

/** The latest start of validity of the certificates (PEM, one or several per text). */
export function latestStart(certificates: readonly string[]): Date {
	const blocks = certificates.flatMap(
		text => text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [],
	);
	return new Date(Math.max(...blocks.map(block => new X509Certificate(block).validFromDate.getTime())));
}

export function clockReason(now: Date, begins: Date): string {
	return `the clock of this node is at ${now.toISOString()}, the certificate is valid from ${begins.toISOString()}`;
}

/** Certificates that are not valid yet: a clock that was set back, in words for the operator. */
import {X509Certificate} from 'node:crypto';

/** When the last of the certificates (PEM, one or several a text) becomes valid. */
export function latestStart(certificates: readonly string[]): Date {
	const blocks = certificates.flatMap(
		text => text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [],
	);
	return new Date(Math.max(...blocks.map(block => new X509Certificate(block).validFromDate.getTime())));
}

export function clockReason(now: Date, begins: Date): string {
	return `this node's clock says ${now.toISOString()}, the certificate begins ${begins.toISOString()}`;
}

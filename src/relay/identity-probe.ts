/** Returns what `openIdentity` would find, and throws the same errors, but does not create or move files. */
import {X509Certificate} from 'node:crypto';
import type {IdentityObservation} from '../check/observations.ts';
import {silentLogger} from '../core/log.ts';
import {lookAtIdentity} from './identity-file.ts';
import {openIdentity, type IdentityFiles} from './identity.ts';

/**
 * @param directory the directory of the own keys
 * @param files the custom files: all of them, or none
 * @throws like `openIdentity`
 */
export async function observeIdentity(
	directory: string,
	files: Required<IdentityFiles> | undefined,
	now: Date,
): Promise<IdentityObservation> {
	if (files !== undefined) {
		const {serverCa, client} = await openIdentity({directory, files, log: silentLogger, now: () => now});
		return {source: 'files', state: 'usable', ...validity([serverCa, client.cert])};
	}

	const found = await lookAtIdentity(directory, now);
	if (found === undefined) {
		return {source: 'own', state: 'absent'};
	}

	return typeof found === 'string'
		? {source: 'own', state: 'unusable', reason: found}
		: {source: 'own', state: 'usable', ...validity([found.ca.cert, found.client.cert])};
}

/** The common validity of all certificates. */
function validity(certificates: readonly string[]): {readonly validFrom: Date; readonly validTo: Date} {
	const read = certificates.map(text => new X509Certificate(text));
	return {
		validFrom: new Date(Math.max(...read.map(({validFromDate}) => validFromDate.getTime()))),
		validTo: new Date(Math.min(...read.map(({validToDate}) => validToDate.getTime()))),
	};
}

/** What this node keeps for itself: directories and keys, judged. Pure. */
import {byteSize} from '../core/byte-size.ts';
import {finding, type Finding, type Problem} from './finding.ts';
import type {DirectoryObservation, IdentityObservation} from './observations.ts';

/** A record is some KiB for each sandbox; everything else in there is sockets. */
const smallBytes = 16n * 1024n ** 2n;

/** @param variable that names it */
export function directoryFinding(
	variable: string,
	{path, nearest, unwritable, availableBytes}: DirectoryObservation,
): Finding {
	const fact = `${path}${nearest === path ? '' : ` (to be made in ${nearest})`}`;
	if (unwritable !== undefined) {
		return finding(fact, {
			status: 'failure',
			text: `cannot be written to: ${unwritable}`,
			remedy: `Make it writable for this process, or set ${variable} to another path; manifests mount /run/peerpod of the node there.`,
		});
	}

	return finding(
		`${fact} is writable, ${byteSize(availableBytes)} available`,
		availableBytes >= smallBytes
			? undefined
			: {
					status: 'warning',
					text: 'which is little',
					remedy: `Free space on the file system of ${nearest}, or set ${variable} to a path on another.`,
				},
	);
}

const dayMs = 86_400_000;
const soonMs = 30 * dayMs;

export interface IdentityContext {
	/** TLS_SKIP_VERIFY */
	readonly skipsVerification: boolean;
	readonly now: Date;
}

export function identityFinding(identity: IdentityObservation, {skipsVerification, now}: IdentityContext): Finding {
	const unverified: Problem | undefined = skipsVerification
		? {
				status: 'warning',
				text: 'certificates of pod VMs are not verified',
				remedy: "Leave out TLS_SKIP_VERIFY: anyone on the network can take a pod VM's place.",
			}
		: undefined;
	switch (identity.state) {
		case 'absent': {
			return finding('own CA, made when the daemon starts', unverified);
		}

		case 'unusable': {
			return finding(
				'own CA',
				{
					status: 'warning',
					text: `what is kept cannot be used: ${identity.reason}`,
					remedy: 'The daemon sets it aside and makes a new one when it starts; pods that run on VMs of the old one have to be deleted.',
				},
				unverified,
			);
		}

		case 'usable': {
			const {source, validTo} = identity;
			return finding(
				`${source === 'own' ? 'own CA' : 'CA and client certificate of CACERT_FILE and CERT_FILE'}, valid until ${validTo.toISOString().slice(0, 10)}`,
				validityProblem(identity, now),
				unverified,
			);
		}
	}
}

function validityProblem(
	{source, validFrom, validTo}: IdentityObservation & {readonly state: 'usable'},
	now: Date,
): Problem | undefined {
	const renew = 'Renew the files of CACERT_FILE, CERT_FILE and CERT_KEY, then restart the daemon.';
	if (validFrom > now) {
		return {
			status: 'failure',
			text: `not valid before ${validFrom.toISOString()}, while this node's clock says ${now.toISOString()}`,
			remedy: `Set this node's clock.${source === 'own' ? '' : ` ${renew}`}`,
		};
	}

	const left = validTo.getTime() - now.getTime();
	if (left <= 0) {
		return {status: 'failure', text: 'which is over', remedy: renew};
	}

	return left < soonMs
		? {status: 'warning', text: `${Math.ceil(left / dayMs)} days are left`, remedy: renew}
		: undefined;
}

/** Turns observations of the directories and keys of this node into findings. Pure. */
import {byteSize} from '../core/byte-size.ts';
import {operatorText, type ErrorWhere} from '../core/errors.ts';
import {finding, type Finding, type Problem} from './finding.ts';
import type {DirectoryObservation, IdentityObservation, RelayProcessObservation} from './observations.ts';

/** The directory contains only sockets and one record of a few KiB per sandbox. */
const smallBytes = 16n * 1024n ** 2n;

/** @param variable the setting of the directory */
export function directoryFinding(
	variable: string,
	{path, nearest, unwritable, availableBytes}: DirectoryObservation,
): Finding {
	const fact = `${path}${nearest === path ? '' : ` (will be created in ${nearest})`}`;
	if (unwritable !== undefined) {
		return finding(fact, {
			status: 'failure',
			text: operatorText(unwritable.reason, withoutPath(unwritable.where)),
			remedy: `${unwritable.remedy ?? 'Make it writable for this process.'} Or set ${variable} to another path: the manifests mount /run/peerpod of the node.`,
		});
	}

	return finding(
		`${fact} is writable, ${byteSize(availableBytes)} available`,
		availableBytes >= smallBytes
			? undefined
			: {
					status: 'warning',
					text: 'low on space',
					remedy: `Free space on the file system of ${nearest}, or set ${variable} to a path on another file system.`,
				},
	);
}

/** The path is part of the fact. */
function withoutPath({path: _path, ...where}: ErrorWhere): ErrorWhere {
	return where;
}

const dayMs = 86_400_000;
const soonMs = 30 * dayMs;

export interface IdentityContext {
	/** TLS_SKIP_VERIFY */
	readonly skipsVerification: boolean;
	readonly now: Date;
}

/** Whether pods survive a restart of the daemon. */
export function relayProcessFinding({use, path, pods}: RelayProcessObservation): Finding {
	if (use === 'off') {
		return {status: 'skipped', text: 'RELAY_PROCESS is off; pods end when the daemon ends'};
	}

	if (pods !== undefined) {
		return finding(
			`answers at ${path}, with ${pods} ${pods === 1 ? 'pod' : 'pods'}; pods survive a restart of the daemon`,
		);
	}

	return use === 'required'
		? {
				status: 'failure',
				text: `does not answer at ${path}`,
				remedy: 'Check the pod of osc-caa-relay on this node, or set RELAY_PROCESS=auto.',
			}
		: finding(`does not run; pods end when the daemon ends`);
}

export function identityFinding(identity: IdentityObservation, {skipsVerification, now}: IdentityContext): Finding {
	const unverified: Problem | undefined = skipsVerification
		? {
				status: 'warning',
				text: 'certificates of pod VMs are not verified',
				remedy: 'Remove TLS_SKIP_VERIFY: without verification, any host on the network can impersonate a pod VM.',
			}
		: undefined;
	switch (identity.state) {
		case 'absent': {
			return finding('own CA, created when the daemon starts', unverified);
		}

		case 'unusable': {
			return finding(
				'own CA',
				{
					status: 'warning',
					text: `the stored CA is unusable: ${identity.reason}`,
					remedy: 'The daemon sets it aside and creates a new CA when it starts. Delete the pods whose VMs use the old CA.',
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
			text: `not valid before ${validFrom.toISOString()}, but the clock of this node is at ${now.toISOString()}`,
			remedy: `Set the clock of this node.${source === 'own' ? '' : ` ${renew}`}`,
		};
	}

	const left = validTo.getTime() - now.getTime();
	if (left <= 0) {
		return {status: 'failure', text: 'expired', remedy: renew};
	}

	return left < soonMs
		? {status: 'warning', text: `expires in ${Math.ceil(left / dayMs)} days`, remedy: renew}
		: undefined;
}

/**
 * Deletes one of our VMs: stops it, deletes its disks, and deletes its definition last, because its metadata tells the
 * next attempt what is left to do. Every step succeeds if there is nothing to do, so the deletion may be repeated from
 * any partial state. After a failed step the other steps continue, but the definition stays as long as anything else
 * may be left.
 */
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {present} from '../core/present.ts';
import {isLibvirtError, libvirtCode, LibvirtConnectionError} from '../libvirt/wire/errors.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {change} from '../libvirt/change.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {isStillThere, type OwnDomain} from './own-domains.ts';
import {deleteVolume} from '../libvirt/storage/volume-deletion.ts';

/** With objects that an administrator may have added: MANAGED_SAVE, SNAPSHOTS_METADATA (libvirt-domain.h). */
const undefineAll = 1 | 2;

/**
 * @throws AdaptorError that names the leftovers
 * @throws LibvirtConnectionError if the connection is lost, and the reason of the signal: then it is unknown what is
 * left
 */
export async function removeVm(
	session: LibvirtCalls,
	{domain: dom, metadata}: OwnDomain,
	signal: AbortSignal,
): Promise<void> {
	const {nonce, pool, poolDirectory, rootVolume, cidataVolume} = metadata;
	const place = {pool, ...present({directory: poolDirectory})};
	const left: Leftover[] = [];
	const remove = async (part: string, removing: Promise<unknown>): Promise<void> => {
		try {
			await removing;
		} catch (error) {
			left.push({part, error});
		}
	};
	const endIfCutOff = (): void => {
		signal.throwIfAborted();
		const lost = left.find(({error}) => error instanceof LibvirtConnectionError);
		if (lost !== undefined) {
			throw toError(lost.error);
		}
	};

	await remove(
		'the running VM',
		ignoring(
			[libvirtCode.operationInvalid, libvirtCode.noDomain],
			change(session, procedures.domainDestroyFlags, {dom, flags: 0}, signal),
		),
	);
	endIfCutOff();
	await Promise.all(
		[rootVolume, cidataVolume].map(async volume => remove(volume, deleteVolume(session, place, volume, signal))),
	);
	endIfCutOff();
	if (left.length > 0) {
		throw leftoverError(dom.name, left);
	}

	// Deleting disks takes time. Meanwhile another daemon of this node may have completed the deletion and assigned the
	// UUID to a new VM.
	if (!(await isStillThere(session, dom, nonce, signal))) {
		return;
	}

	await ignoring(
		[libvirtCode.noDomain],
		change(session, procedures.domainUndefineFlags, {dom, flags: undefineAll}, signal),
	);
}

interface Leftover {
	/** A phrase, or the name of a volume. */
	readonly part: string;
	/** Why it could not be removed. */
	readonly error: unknown;
}

/** @param left at least one */
function leftoverError(instanceName: string, left: readonly Leftover[]): AdaptorError {
	const [first] = left;
	const cause = toError(first?.error);
	const {what, where, remedy} =
		cause instanceof AdaptorError ? cause : {what: cause.message, where: {}, remedy: undefined};
	return new AdaptorError({
		code: codeOf(cause),
		what: `Could not delete the pod VM completely: ${what}; leftovers: ${left
			.map(({part}) => part)
			.sort()
			.join(', ')} and the definition of the domain`,
		where: {...where, instanceName},
		remedy: `${(remedy ?? "See libvirtd's log on the KVM host").replace(/\.$/v, '')}. Then the deletion continues. Or remove the leftovers by hand, the definition last: "virsh undefine ${instanceName}".`,
		cause,
	});
}

/** Waits for all, so that nothing is in progress when it rejects with the first failure. */
export async function settleAll(changes: ReadonlyArray<Promise<unknown>>): Promise<void> {
	await Promise.allSettled(changes);
	await Promise.all(changes);
}

async function ignoring(codes: readonly number[], changing: Promise<unknown>): Promise<void> {
	try {
		await changing;
	} catch (error) {
		if (!codes.some(code => isLibvirtError(error, code))) {
			throw error;
		}
	}
}

/**
 * Deletes one VM of ours: stop, disks, and the definition last, because its metadata is what tells the next attempt what is left to do.
 * Every step succeeds when there is nothing (more) to do, so it may be repeated from any half-made or half-deleted state.
 */
import {isLibvirtError, libvirtCode} from '../libvirt/errors.ts';
import {procedures} from '../libvirt/procedures.ts';
import {change, type LibvirtCalls} from './libvirt-calls.ts';
import {isStillThere, type OwnDomain} from './own-domains.ts';
import {deleteVolume} from './volumes.ts';

/** With what an administrator may have added: MANAGED_SAVE, SNAPSHOTS_METADATA (libvirt-domain.h). */
const undefineAll = 1 | 2;

export async function removeVm(session: LibvirtCalls, {domain: dom, metadata}: OwnDomain, signal: AbortSignal): Promise<void> {
	await ignoring([libvirtCode.operationInvalid, libvirtCode.noDomain], change(session, procedures.domainDestroyFlags, {dom, flags: 0}, signal));
	await settleAll([metadata.rootVolume, metadata.cidataVolume].map(async volume => deleteVolume(session, metadata.pool, volume, signal)));
	// The disks took a while. Another daemon of this node that deletes the same VM may have finished, and given the UUID to a new one.
	if (!await isStillThere(session, dom, metadata.nonce, signal)) {
		return;
	}

	await ignoring([libvirtCode.noDomain], change(session, procedures.domainUndefineFlags, {dom, flags: undefineAll}, signal));
}

/** Waits for all, so that nothing is still being changed when it rejects with the first failure. */
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

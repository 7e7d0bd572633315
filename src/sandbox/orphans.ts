/**
 * VMs of this node that no sandbox is known for: their record was lost, with the node's memory or otherwise, so nobody will ever stop them.
 * Looked for again and again; one that stays without a sandbox for the grace period is removed.
 */
import {AdaptorError} from '../errors.ts';
import {pause} from '../lifetime.ts';
import type {Logger} from '../log.ts';
import {FailureLog} from '../concurrency/failure-log.ts';
import type {PodVms, SandboxId} from './ports.ts';
import type {SandboxRecords} from './records.ts';

export interface ReapingTimes {
	/** How long a VM may be without a sandbox: a daemon that overlaps with this one may be about to write its record. */
	readonly orphanGraceMs: number;
	/** Between two looks. */
	readonly orphanIntervalMs: number;
}

export interface Reaping extends ReapingTimes {
	readonly podVms: Pick<PodVms, 'list'>;
	/** Those of an overlapping daemon count too, and those that cannot be read. */
	readonly records: Pick<SandboxRecords, 'read'>;
	readonly isKnown: (id: SandboxId) => boolean;
	readonly reap: (id: SandboxId) => Promise<void>;
	readonly log: Logger;
}

/** Goes on until the signal aborts. Never throws. */
export async function reapOrphans({orphanGraceMs, orphanIntervalMs, podVms, records, isKnown, reap, log}: Reaping, signal: AbortSignal): Promise<void> {
	const unreadable = new FailureLog();
	const isRecorded = async (id: SandboxId): Promise<boolean> => {
		try {
			const record = await records.read(id);
			unreadable.recovered(id);
			return record !== undefined;
		} catch (error) {
			if (unreadable.failed(id)) {
				log.error({sandboxId: id, err: error}, 'a pod VM is left alone, for its sandbox\'s record cannot be read');
			}

			return true;
		}
	};
	/** When each was first seen without a sandbox. */
	let since = new Map<SandboxId, number>();
	const isEnding = (): boolean => signal.aborted;
	while (!isEnding()) {
		try {
			const vms = await podVms.list(signal);
			const unknown = vms.filter(({sandboxId}) => !isKnown(sandboxId));
			// After the VMs: a sandbox is on record before its VM exists.
			const areRecorded = await Promise.all(unknown.map(async ({sandboxId}) => isRecorded(sandboxId)));
			const orphans = unknown.filter((_, index) => areRecorded[index] === false);
			const now = performance.now();
			since = new Map(orphans.map(({sandboxId}) => [sandboxId, since.get(sandboxId) ?? now]));
			for (const {sandboxId, name, pod, createdAt} of orphans) {
				if (now - (since.get(sandboxId) ?? now) >= orphanGraceMs) {
					log.warn({sandboxId, instanceName: name, pod: `${pod.namespace}/${pod.name}`, reason: `made at ${createdAt.toISOString()}, no sandbox is known for it`}, 'removing an orphaned pod VM');
					reap(sandboxId).catch((error: unknown) => log.warn({sandboxId, err: error}, 'could not remove an orphaned pod VM, it is tried again'));
				}
			}
		} catch (error) {
			if (!isEnding()) {
				log[error instanceof AdaptorError ? 'debug' : 'error']({err: error}, 'could not look for orphaned pod VMs');
			}
		}

		await pause(orphanIntervalMs, signal).catch(() => undefined);
	}
}

/**
 * VMs of this node that no sandbox is known for: their record was lost, with the node's memory or otherwise, so nobody will ever stop them.
 * Looked for again and again; one that stays without a sandbox for the grace period is removed.
 */
import {AdaptorError} from '../errors.ts';
import {pause} from '../lifetime.ts';
import type {Logger} from '../log.ts';
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
	/** Those of an overlapping daemon count too. */
	readonly records: Pick<SandboxRecords, 'readAll'>;
	readonly isKnown: (id: SandboxId) => boolean;
	readonly reap: (id: SandboxId) => Promise<void>;
	readonly log: Logger;
}

/** Goes on until the signal aborts. Never throws. */
export async function reapOrphans({orphanGraceMs, orphanIntervalMs, podVms, records, isKnown, reap, log}: Reaping, signal: AbortSignal): Promise<void> {
	/** When each was first seen without a sandbox. */
	let since = new Map<SandboxId, number>();
	const isEnding = (): boolean => signal.aborted;
	while (!isEnding()) {
		try {
			const vms = await podVms.list(signal);
			// After the VMs: a sandbox is on record before its VM exists.
			const recorded = new Set((await records.readAll()).map(({id}) => id));
			const now = performance.now();
			const orphans = vms.filter(({sandboxId}) => !isKnown(sandboxId) && !recorded.has(sandboxId));
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

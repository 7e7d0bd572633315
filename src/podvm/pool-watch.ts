/** Observes the space of the storage pool at intervals. Only for metrics: a start finds out by itself. */
import {every} from '../core/concurrency/every.ts';
import type {Observer} from '../core/observer.ts';
import type {LibvirtSession} from '../libvirt/session.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import type {PoolEvent} from './events.ts';

/** Disks of pod VMs grow slowly. */
const intervalMs = 60_000;

/** Disposing ends the watch. */
export function watchPool(
	session: Pick<LibvirtSession, 'call'>,
	name: string,
	observer: Observer<PoolEvent>,
): AsyncDisposable {
	const ending = new AbortController();
	const watching = watch(session, name, observer, ending.signal);
	return {
		async [Symbol.asyncDispose]() {
			ending.abort(new Error('the watch is over'));
			await watching;
		},
	};
}

/** Never throws. */
async function watch(
	session: Pick<LibvirtSession, 'call'>,
	name: string,
	observer: Observer<PoolEvent>,
	signal: AbortSignal,
): Promise<void> {
	for await (const _ of every(intervalMs, signal)) {
		try {
			const {pool} = await session.call(procedures.storagePoolLookupByName, {name}, signal);
			const {capacity, available} = await session.call(procedures.storagePoolGetInfo, {pool}, signal);
			observer.notify(
				// libvirt tells 0 for a pool that is not active.
				capacity === 0n
					? {kind: 'pool-not-observed'}
					: {kind: 'pool-observed', capacityBytes: capacity, availableBytes: available},
			);
		} catch {
			// The session reports why it cannot reach the host.
			observer.notify({kind: 'pool-not-observed'});
		}
	}
}

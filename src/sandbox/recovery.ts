/** What taking up an earlier run's sandbox needs, and when to give it up. The steps are sandbox.ts's. */
import {AdaptorError} from '../errors.ts';
import {abortable, pause} from '../lifetime.ts';
import type {PodVmRecord} from './ports.ts';
import type {SandboxRecord, SandboxRecords} from './records.ts';

export interface Recovery {
	/** The VMs at the hypervisor; asked again until it answers or the signal aborts. */
	readonly vms: (signal: AbortSignal) => Promise<readonly PodVmRecord[]>;
	/** How long to leave a start alone that seems to be cut off: while the daemon before this one may still be at it. */
	readonly halfMadeGraceMs: Promise<number>;
}

/** How often to look whether the daemon before this one has brought a start to its end: once that daemon ends, nobody serves the sandbox. */
const lookAgainMs = 500;

/**
 * Waits until the daemon before this one has brought a sandbox a step on from where its record was, for as long as it may be at it.
 * @returns where to: `to` is undefined when nothing is left of the sandbox; undefined when it is as it was
 */
export async function changeOnRecord(
	records: Pick<SandboxRecords, 'readAll'>, {id, state}: Pick<SandboxRecord, 'id' | 'state'>, {halfMadeGraceMs}: Recovery, signal: AbortSignal,
): Promise<{readonly to: SandboxRecord | undefined} | undefined> {
	for (let leftMs = await abortable(halfMadeGraceMs, signal); ; leftMs -= lookAgainMs) {
		const latest = (await records.readAll()).find(record => record.id === id);
		if (latest?.state !== state) {
			return {to: latest};
		}

		if (leftMs <= 0) {
			return undefined;
		}

		await pause(Math.min(leftMs, lookAgainMs), signal);
	}
}

/** Whether an earlier run's sandbox cannot come back: its VM has ended, or its pod's namespace is gone. Anything else may pass. */
export function isLost(error: unknown): error is AdaptorError {
	return error instanceof AdaptorError && (error.code === 'aborted' || error.code === 'not-found');
}

/** The address that was right before, then those that are found. No generator: that would end only with one more address, perhaps never. */
export function startingWith(address: string, found: AsyncGenerator<string, never>): AsyncIterable<string> {
	let isFirst = true;
	const next = async (): Promise<IteratorResult<string, never>> => {
		if (isFirst) {
			isFirst = false;
			return {value: address};
		}

		const other = await found.next();
		return other.done !== true && other.value === address ? next() : other;
	};

	return {[Symbol.asyncIterator]: () => ({next, return: async () => found.return(undefined as never)})};
}

/**
 * The record of one sandbox: written as its life goes on, and known well enough to say at any time that it is to go.
 * Knows no states; where records are kept is the port's.
 */
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, SandboxId} from './ports.ts';
import type {SandboxRecord, SandboxRecords} from './records.ts';

/** `Omit` of each member of a union. */
type DistributedOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

/** What every record of a sandbox says, once it is created. */
type Created = Pick<Extract<SandboxRecord, {readonly state: 'created'}>, 'id' | 'request' | 'network'>;

export class RecordWriter {
	readonly #id: SandboxId;
	readonly #records: Pick<SandboxRecords, 'write'>;
	#created: Created | undefined;

	constructor(id: SandboxId, records: Pick<SandboxRecords, 'write'>) {
		this.#id = id;
		this.#records = records;
	}

	/** What was asked for; undefined until the sandbox is created. */
	get request(): PodRequest | undefined {
		return this.#created?.request;
	}

	/** Known from the moment in which the sandbox is created. */
	get network(): PodNetwork | undefined {
		return this.#created?.network;
	}

	/** @param record what another daemon has written of this sandbox; none: it has left nothing of it */
	remember(record: SandboxRecord | undefined): void {
		this.#created =
			record === undefined || record.state === 'creating'
				? undefined
				: {id: this.#id, request: record.request, network: record.network};
	}

	async write(record: DistributedOmit<SandboxRecord, 'id'>): Promise<void> {
		const written = {id: this.#id, ...record};
		this.remember(written);
		await this.#records.write(written);
	}

	/**
	 * From here on there is no way back, also for the next daemon. Of a sandbox that is not created yet there is
	 * nothing to say.
	 */
	async writeStopping(): Promise<void> {
		if (this.#created !== undefined) {
			await this.#records.write({...this.#created, state: 'stopping'});
		}
	}
}

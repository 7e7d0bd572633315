/**
 * Writes the record of one sandbox, and keeps what a 'stopping' record needs. Knows no states. The port decides where
 * records are stored.
 */
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, SandboxId} from './ports.ts';
import type {SandboxRecord, SandboxRecords} from './records.ts';

/** `Omit` of each member of a union. */
type DistributedOmit<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

/** The fields that all records have from the creation of the sandbox on. */
type Created = Pick<Extract<SandboxRecord, {readonly state: 'created'}>, 'id' | 'request' | 'network'>;

export class RecordWriter {
	readonly #id: SandboxId;
	readonly #records: Pick<SandboxRecords, 'write'>;
	#created: Created | undefined;

	constructor(id: SandboxId, records: Pick<SandboxRecords, 'write'>) {
		this.#id = id;
		this.#records = records;
	}

	/** Undefined until the sandbox is created. */
	get request(): PodRequest | undefined {
		return this.#created?.request;
	}

	/** Undefined until the sandbox is created. */
	get network(): PodNetwork | undefined {
		return this.#created?.network;
	}

	/** @param record the record that another daemon wrote; undefined if it removed the record */
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
	 * Commits to the removal, also for the next daemon. Does nothing if the sandbox is not created yet.
	 */
	async writeStopping(): Promise<void> {
		if (this.#created !== undefined) {
			await this.#records.write({...this.#created, state: 'stopping'});
		}
	}
}

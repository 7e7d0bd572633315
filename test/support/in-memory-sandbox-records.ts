/** Sandbox records that survive a restart of the registry. Records are copied when written and read, like files. */
import {AdaptorError} from '../../src/core/errors.ts';
import type {SandboxRecord, SandboxRecords} from '../../src/sandbox/records.ts';

export class InMemorySandboxRecords implements SandboxRecords {
	readonly #texts = new Map<string, string>();
	isReadable = true;

	async write(record: SandboxRecord): Promise<void> {
		this.#texts.set(record.id, JSON.stringify(record));
	}

	async remove(id: string): Promise<void> {
		this.#texts.delete(id);
	}

	async read(id: string): Promise<SandboxRecord | undefined> {
		if (!this.isReadable) {
			throw new AdaptorError({
				code: 'unavailable',
				what: "Could not read the sandbox's record",
				where: {sandboxId: id},
			});
		}

		const text = this.#texts.get(id);
		return text === undefined ? undefined : (JSON.parse(text) as SandboxRecord);
	}

	async readAll(): Promise<readonly SandboxRecord[]> {
		return [...this.#texts.values()].map(text => JSON.parse(text) as SandboxRecord);
	}
}

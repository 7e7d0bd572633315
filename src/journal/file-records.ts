/**
 * Sandbox records as files, `<podsDir>/<id>/sandbox.json`: written atomically, validated when read. A tmpfs of the node
 * is sufficient: a reboot ends all pods, and the hypervisor has all data that is needed to delete VMs.
 */
import {randomBytes} from 'node:crypto';
import {mkdir, open, readdir, readFile, rename, rm, rmdir} from 'node:fs/promises';
import {join} from 'node:path';
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {AdaptorError, codeOf, toError} from '../core/errors.ts';
import {fileProblem} from '../core/file-error.ts';
import type {Logger} from '../core/log.ts';
import type {SandboxId} from '../sandbox/ports.ts';
import {parseRecord, recordText, type SandboxRecord, type SandboxRecords} from '../sandbox/records.ts';

const fileName = 'sandbox.json';

/** Names of the temporary files of `write`. */
const temporaryName = /^\.[\da-f]{8}$/v;

export class FileRecords implements SandboxRecords {
	readonly #podsDir: string;
	readonly #log: Logger;
	readonly #failures = new FailureLog();

	constructor(podsDir: string, log: Logger) {
		this.#podsDir = podsDir;
		this.#log = log;
	}

	async write(record: SandboxRecord): Promise<void> {
		const directory = join(this.#podsDir, record.id);
		const temporary = join(directory, `.${randomBytes(4).toString('hex')}`);
		try {
			await mkdir(directory, {recursive: true, mode: 0o700});
			const file = await open(temporary, 'wx', 0o600);
			try {
				await file.writeFile(recordText(record));
				await file.sync();
			} finally {
				await file.close();
			}

			await rename(temporary, join(directory, fileName));
		} catch (error) {
			await rm(temporary, {force: true}).catch(() => undefined);
			const {reason, where, remedy} = await fileProblem(error, join(directory, fileName));
			throw new AdaptorError({
				code: 'unavailable',
				what: `Could not write the record of the sandbox to PODS_DIR: ${reason}`,
				where: {sandboxId: record.id, ...where},
				remedy: remedy ?? 'Check that PODS_DIR is writable and has free space.',
				cause: error,
			});
		}
	}

	async remove(id: SandboxId): Promise<void> {
		const directory = join(this.#podsDir, id);
		// A daemon that was killed during a write has left its temporary file.
		const own = (await readdir(directory).catch(missingIsEmpty)).filter(
			name => name === fileName || temporaryName.test(name),
		);
		await Promise.all(own.map(async name => rm(join(directory, name), {force: true})));
		// The agent socket may still be in the directory. Its owner removes it, and then the empty directory.
		await rmdir(directory).catch((error: unknown) => {
			if (!(
				error instanceof Error &&
				'code' in error &&
				['ENOENT', 'ENOTEMPTY', 'EEXIST'].includes(String(error.code))
			)) {
				throw error;
			}
		});
	}

	async read(id: SandboxId): Promise<SandboxRecord | undefined> {
		const path = join(this.#podsDir, id, fileName);
		let text: string;
		try {
			text = await readFile(path, 'utf8');
		} catch (error) {
			if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
				return undefined;
			}

			throw new AdaptorError({
				code: 'unavailable',
				what: `Could not read the record of the sandbox: ${toError(error).message}`,
				where: {sandboxId: id, path},
				remedy: 'Check that PODS_DIR is readable.',
				cause: error,
			});
		}

		try {
			return parseRecord(id, text);
		} catch (error) {
			if (codeOf(error) === 'failed-precondition') {
				throw error;
			}

			// Keep the file for an analysis. If the sandbox has a VM, it is now an orphan and will be removed.
			await rename(path, `${path}.bad`);
			this.#log.error({path: `${path}.bad`, err: error}, 'a damaged or foreign sandbox record was renamed');
			return undefined;
		}
	}

	async readAll(): Promise<readonly SandboxRecord[]> {
		const directories = await readdir(this.#podsDir, {withFileTypes: true}).catch(missingIsEmpty);
		const records = await Promise.all(
			directories
				.filter(entry => entry.isDirectory())
				.map(async ({name}) => {
					try {
						const record = await this.read(name);
						this.#failures.recovered(name);
						return record;
					} catch (error) {
						if (this.#failures.failed(name)) {
							this.#log.error(
								{path: join(this.#podsDir, name, fileName), err: error},
								'a sandbox record cannot be read; skipping it',
							);
						}

						return undefined;
					}
				}),
		);
		return records.filter(record => record !== undefined);
	}
}

function missingIsEmpty(error: unknown): [] {
	if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
		return [];
	}

	throw error;
}

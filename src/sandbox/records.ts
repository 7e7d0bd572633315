/**
 * What a daemon must remember of its sandboxes over its own death: one file a sandbox, `<podsDir>/<id>/sandbox.json`.
 * A record is written whole or not at all, read with suspicion, and holds no secret: certificates are issued again when they are needed.
 * The node's tmpfs is the right place: a node that reboots has lost its pods, and what must be known to delete VMs is with the hypervisor.
 */
import {randomBytes} from 'node:crypto';
import {mkdir, open, readdir, readFile, rename, rm, rmdir} from 'node:fs/promises';
import {join} from 'node:path';
import {AdaptorError} from '../errors.ts';
import type {Logger} from '../log.ts';
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, PodVm, SandboxId} from './ports.ts';

/** The journal's word on a sandbox. A start is not recorded: a record that is only 'created' and a VM mean that one was cut off. */
export type SandboxRecord = {
	readonly id: SandboxId;
	readonly request: PodRequest;
	readonly network: PodNetwork;
} & (
	| {readonly state: 'created'}
	| {readonly state: 'running'; readonly vm: PodVm; readonly address: string}
	/** StopVM was asked for: there is no way back. */
	| {readonly state: 'stopping'}
);

export interface SandboxRecords {
	/** Replaces an earlier record of the same sandbox. Durable when it resolves. */
	write(record: SandboxRecord): Promise<void>;
	/** Succeeds when there is none. */
	remove(id: SandboxId): Promise<void>;
	/** All of them. What is torn or foreign is set aside, and said. */
	readAll(): Promise<readonly SandboxRecord[]>;
}

const fileName = 'sandbox.json';
/** Raised when a field changes its meaning; an older daemon leaves newer records alone. */
const version = 1;

export class FileRecords implements SandboxRecords {
	readonly #podsDir: string;
	readonly #log: Logger;

	constructor(podsDir: string, log: Logger) {
		this.#podsDir = podsDir;
		this.#log = log;
	}

	async write(record: SandboxRecord): Promise<void> {
		const directory = join(this.#podsDir, record.id);
		await mkdir(directory, {recursive: true, mode: 0o700});
		const temporary = join(directory, `.${randomBytes(4).toString('hex')}`);
		try {
			const file = await open(temporary, 'wx', 0o600);
			try {
				await file.writeFile(`${JSON.stringify({version, ...record})}\n`);
				await file.sync();
			} finally {
				await file.close();
			}

			await rename(temporary, join(directory, fileName));
		} catch (error) {
			await rm(temporary, {force: true});
			throw new AdaptorError({
				code: 'unavailable',
				what: 'Could not write the sandbox\'s record',
				where: {sandboxId: record.id, path: join(directory, fileName)},
				remedy: 'Check that PODS_DIR can be written to and has space left.',
				cause: error,
			});
		}
	}

	async remove(id: SandboxId): Promise<void> {
		const directory = join(this.#podsDir, id);
		await rm(join(directory, fileName), {force: true});
		// Whoever else keeps something there (the agent's socket) removes it himself, and the directory with it if he is the last.
		await rmdir(directory).catch((error: unknown) => {
			if (!(error instanceof Error && 'code' in error && ['ENOENT', 'ENOTEMPTY', 'EEXIST'].includes(String(error.code)))) {
				throw error;
			}
		});
	}

	async readAll(): Promise<readonly SandboxRecord[]> {
		const directories = await readdir(this.#podsDir, {withFileTypes: true}).catch(missingIsEmpty);
		const records = await Promise.all(directories.filter(entry => entry.isDirectory()).map(async ({name}) => this.#read(name)));
		return records.filter(record => record !== undefined);
	}

	async #read(id: SandboxId): Promise<SandboxRecord | undefined> {
		const path = join(this.#podsDir, id, fileName);
		let text: string;
		try {
			text = await readFile(path, 'utf8');
		} catch (error) {
			if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) {
				this.#log.error({path, err: error}, 'a sandbox record cannot be read and is passed over');
			}

			return undefined;
		}

		try {
			return parseRecord(id, text);
		} catch (error) {
			// Kept for whoever wants to know; its VM, if it has one, is an orphan now and goes its way.
			await rename(path, `${path}.bad`);
			this.#log.error({path: `${path}.bad`, err: error}, 'a sandbox record is damaged or foreign and was set aside');
			return undefined;
		}
	}
}

function missingIsEmpty(error: unknown): [] {
	if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
		return [];
	}

	throw error;
}

/** @throws AdaptorError 'data-loss' */
export function parseRecord(id: SandboxId, text: string): SandboxRecord {
	const damaged = (what: string): AdaptorError => new AdaptorError({code: 'data-loss', what, where: {sandboxId: id}});
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw new AdaptorError({code: 'data-loss', what: 'The record is not JSON', where: {sandboxId: id}, cause: error});
	}

	const record = fields(value);
	if (record['version'] !== version) {
		throw damaged(`The record is of version ${JSON.stringify(record['version'] ?? null).slice(0, 20)}, this is ${version}`);
	}

	if (record['id'] !== id) {
		throw damaged('The record is another sandbox\'s');
	}

	// The shape was ours when it was written, by a rename that shows it whole: what is checked is what a foreign file would get wrong.
	const {pod, instanceName} = fields(record['request']);
	const network = fields(record['network']);
	const {state} = record;
	const hasVm = state !== 'running' || (isText(fields(record['vm'])['uuid']) && isText(fields(record['vm'])['name']) && isText(record['address']));
	if (!isText(instanceName) || !isText(fields(pod)['name']) || !isText(fields(pod)['namespace']) || !isText(network['netnsPath'])
		|| typeof network['vxlanId'] !== 'number' || !(state === 'created' || state === 'running' || state === 'stopping') || !hasVm) {
		throw damaged('The record lacks fields that it must have');
	}

	const {version: _, ...rest} = record;
	return rest as unknown as SandboxRecord;
}

function fields(value: unknown): Readonly<Record<string, unknown>> {
	return typeof value === 'object' && value !== null ? value as Readonly<Record<string, unknown>> : {};
}

function isText(value: unknown): value is string {
	return typeof value === 'string' && value !== '';
}

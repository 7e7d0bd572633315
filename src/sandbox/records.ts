/**
 * The records of sandboxes, which survive a restart of the daemon, and their parser. They contain no secrets:
 * certificates are issued again when needed. The port decides where records are stored.
 */
import {AdaptorError} from '../core/errors.ts';
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, PodVm, SandboxId} from './ports.ts';

/**
 * The record of a sandbox. A start is not recorded: a record with 'created' and a VM mean that a start was interrupted.
 */
export type SandboxRecord = {
	readonly id: SandboxId;
	readonly request: PodRequest;
} &
	/** Written before the reservation: the namespace may have one, or none yet. */
	(
		| {readonly state: 'creating'; readonly netnsPath: string}
		| {readonly state: 'created'; readonly network: PodNetwork}
		| {readonly state: 'running'; readonly network: PodNetwork; readonly vm: PodVm; readonly address: string}
		/** StopVM was called: the sandbox will be removed. */
		| {readonly state: 'stopping'; readonly network: PodNetwork}
	);

/** Storage for records that survives a restart of the daemon. */
export interface SandboxRecords {
	/** Replaces an earlier record of the same sandbox. Durable when it resolves. */
	write(record: SandboxRecord): Promise<void>;
	/** Succeeds if there is no record. */
	remove(id: SandboxId): Promise<void>;
	/**
	 * Undefined if there is no record. A damaged or foreign file is set aside and logged.
	 * @throws AdaptorError 'unavailable' if it cannot be read; 'failed-precondition' for the record of a later version
	 */
	read(id: SandboxId): Promise<SandboxRecord | undefined>;
	/** All records, as from `read`. A record that cannot be read is skipped and logged once. */
	readAll(): Promise<readonly SandboxRecord[]>;
}

/** Incremented when a field changes its meaning. After a downgrade, an older daemon leaves newer sandboxes alone. */
const recordVersion = 1;

export function recordText(record: SandboxRecord): string {
	return `${JSON.stringify({version: recordVersion, ...record})}\n`;
}

/** @throws AdaptorError 'data-loss'; 'failed-precondition' if a later version wrote it */
export function parseRecord(id: SandboxId, text: string): SandboxRecord {
	const damaged = (what: string): AdaptorError => new AdaptorError({code: 'data-loss', what, where: {sandboxId: id}});
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw new AdaptorError({
			code: 'data-loss',
			what: 'The record is not JSON',
			where: {sandboxId: id},
			cause: error,
		});
	}

	const record = fields(value);
	if (Number.isSafeInteger(record['version']) && Number(record['version']) > recordVersion) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `The record has version ${String(record['version'])}, but this program only supports ${recordVersion}`,
			where: {sandboxId: id},
			remedy: 'Run the later version until its pods are gone.',
		});
	}

	if (record['version'] !== recordVersion) {
		throw damaged(
			`The record has version ${JSON.stringify(record['version'] ?? null).slice(0, 20)}, expected ${recordVersion}`,
		);
	}

	if (record['id'] !== id) {
		throw damaged('The record belongs to another sandbox');
	}

	// The daemon writes records atomically, so they are complete. The checks only detect foreign files.
	const {pod, instanceName} = fields(record['request']);
	const network = fields(record['network']);
	const hasNetwork = isText(network['netnsPath']) && typeof network['vxlanId'] === 'number';
	const hasVm =
		isText(fields(record['vm'])['uuid']) && isText(fields(record['vm'])['name']) && isText(record['address']);
	const isWhole = new Map<unknown, boolean>([
		['creating', isText(record['netnsPath'])],
		['created', hasNetwork],
		['running', hasNetwork && hasVm],
		['stopping', hasNetwork],
	] satisfies ReadonlyArray<[SandboxRecord['state'], boolean]>).get(record['state']);
	if (
		!isText(instanceName) ||
		!isText(fields(pod)['name']) ||
		!isText(fields(pod)['namespace']) ||
		isWhole !== true
	) {
		throw damaged('The record lacks required fields');
	}

	const {version: _, ...rest} = record;
	return rest as unknown as SandboxRecord;
}

function fields(value: unknown): Readonly<Record<string, unknown>> {
	return typeof value === 'object' && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
}

function isText(value: unknown): value is string {
	return typeof value === 'string' && value !== '';
}

/**
 * The records of sandboxes, which survive a restart of the daemon, and their parser. They contain no secrets:
 * certificates are issued again when needed. The port decides where records are stored.
 */
import {AdaptorError} from '../core/errors.ts';
import {at, numberAt, parseJson, textAt} from '../core/json.ts';
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, PodVm, SandboxId} from './ports.ts';

/**
 * The record of a sandbox. A start is not recorded: if the record says 'created' and a VM exists, a start was
 * interrupted.
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
		value = parseJson(text);
	} catch (error) {
		throw new AdaptorError({
			code: 'data-loss',
			what: 'The record is not JSON',
			where: {sandboxId: id},
			cause: error,
		});
	}

	const version = at(value, 'version');
	if (Number.isSafeInteger(version) && Number(version) > recordVersion) {
		throw new AdaptorError({
			code: 'failed-precondition',
			what: `The record has version ${String(version)}, but this program only supports ${recordVersion}`,
			where: {sandboxId: id},
			remedy: 'Run the later version until its pods are gone.',
		});
	}

	if (version !== recordVersion) {
		throw damaged(
			`The record has version ${JSON.stringify(version ?? null).slice(0, 20)}, expected ${recordVersion}`,
		);
	}

	if (at(value, 'id') !== id) {
		throw damaged('The record belongs to another sandbox');
	}

	// The daemon writes records atomically, so they are complete. The checks only detect foreign files.
	const has = (...path: readonly string[]): boolean => (textAt(value, ...path) ?? '') !== '';
	const hasNetwork = has('network', 'netnsPath') && numberAt(value, 'network', 'vxlanId') !== undefined;
	const hasVm = has('vm', 'uuid') && has('vm', 'name') && has('address');
	const isWhole = new Map<unknown, boolean>([
		['creating', has('netnsPath')],
		['created', hasNetwork],
		['running', hasNetwork && hasVm],
		['stopping', hasNetwork],
	] satisfies ReadonlyArray<[SandboxRecord['state'], boolean]>).get(at(value, 'state'));
	if (
		!has('request', 'instanceName') ||
		!has('request', 'pod', 'name') ||
		!has('request', 'pod', 'namespace') ||
		isWhole !== true
	) {
		throw damaged('The record lacks required fields');
	}

	const {version: _, ...record} = value as SandboxRecord & {readonly version: unknown};
	return record;
}

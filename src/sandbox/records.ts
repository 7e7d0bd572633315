/**
 * What a daemon must remember of its sandboxes over its own death, and how a text is recognised as such a record.
 * Holds no secret: certificates are issued again when they are needed. Where records are kept is the port's.
 */
import {AdaptorError} from '../core/errors.ts';
import {at, numberAt, parseJson, textAt} from '../core/json.ts';
import type {PodRequest} from './pod-request.ts';
import type {PodNetwork, PodVm, SandboxId} from './ports.ts';

/**
 * The journal's word on a sandbox. A start is not recorded: a record that is only 'created' and a VM mean that one was
 * cut off.
 */
export type SandboxRecord = {
	readonly id: SandboxId;
	readonly request: PodRequest;
} &
	/** Written before anything is made: there may be a reservation in the namespace, or none yet. */
	(
		| {readonly state: 'creating'; readonly netnsPath: string}
		| {readonly state: 'created'; readonly network: PodNetwork}
		| {readonly state: 'running'; readonly network: PodNetwork; readonly vm: PodVm; readonly address: string}
		/** StopVM was asked for: there is no way back. */
		| {readonly state: 'stopping'; readonly network: PodNetwork}
	);

/** Passed over a daemon's death, by whatever means. */
export interface SandboxRecords {
	/** Replaces an earlier record of the same sandbox. Durable when it resolves. */
	write(record: SandboxRecord): Promise<void>;
	/** Succeeds when there is none. */
	remove(id: SandboxId): Promise<void>;
	/**
	 * Undefined when there is none, or none any more: what is torn or foreign is set aside, and said.
	 * @throws AdaptorError 'unavailable' when that cannot be told; 'failed-precondition' for the record of a later
	 * program
	 */
	read(id: SandboxId): Promise<SandboxRecord | undefined>;
	/** All of them, each as `read` has it; one that cannot be read is passed over, which is logged once. */
	readAll(): Promise<readonly SandboxRecord[]>;
}

/** Raised when a field changes its meaning: an older daemon, after a roll-back, leaves such a sandbox alone. */
const recordVersion = 1;

export function recordText(record: SandboxRecord): string {
	return `${JSON.stringify({version: recordVersion, ...record})}\n`;
}

/** @throws AdaptorError 'data-loss'; 'failed-precondition' when a later program wrote it */
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
			what: `The record is of version ${String(version)}, this program knows ${recordVersion}`,
			where: {sandboxId: id},
			remedy: 'Run the version again that wrote it, until its pods are gone.',
		});
	}

	if (version !== recordVersion) {
		throw damaged(
			`The record is of version ${JSON.stringify(version ?? null).slice(0, 20)}, this is ${recordVersion}`,
		);
	}

	if (at(value, 'id') !== id) {
		throw damaged("The record is another sandbox's");
	}

	// The shape was ours when it was written, by a rename that shows it whole: what is checked is what a foreign file
	// would get wrong.
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
		throw damaged('The record lacks fields that it must have');
	}

	const {version: _, ...record} = value as SandboxRecord & {readonly version: unknown};
	return record;
}

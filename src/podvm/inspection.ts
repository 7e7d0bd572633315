/** What the host has for one sandbox, for an operator who inspects it. Changes nothing. */
import {isLibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import type {PodVm, SandboxId} from '../sandbox/ports.ts';
import type {ConsoleOutput} from './console-tail.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import type {OwnDomain} from './own-domains.ts';

export interface VolumeDescription {
	readonly name: string;
	/** Bytes. */
	readonly capacity: bigint;
	/** Bytes. */
	readonly allocation: bigint;
}

export interface PodVmDescription {
	readonly domainXml: string;
	/** Those of its disks that exist. */
	readonly volumes: readonly VolumeDescription[];
}

export interface PodVmInspection {
	/** Undefined if the sandbox has no domain. */
	describe(sandboxId: SandboxId, signal: AbortSignal): Promise<PodVmDescription | undefined>;
	/**
	 * The console output after the position, or what is kept of it; waits until there is some. Opens the console if it
	 * is not being read; it is closed some time after the last call.
	 * @throws 'failed-precondition' for a confidential VM
	 */
	readConsole(vm: PodVm, position: number, signal: AbortSignal): Promise<ConsoleOutput>;
}

export async function describeDomain(
	session: Pick<LibvirtCalls, 'call'>,
	{domain, metadata: {pool, rootVolume, cidataVolume}}: OwnDomain,
	signal: AbortSignal,
): Promise<PodVmDescription> {
	const [{xml}, ...volumes] = await Promise.all([
		session.call(procedures.domainGetXmlDesc, {dom: domain, flags: 0}, signal),
		...[rootVolume, cidataVolume].map(async name => describeVolume(session, pool, name, signal)),
	]);
	return {domainXml: xml, volumes: volumes.filter(volume => volume !== undefined)};
}

async function describeVolume(
	session: Pick<LibvirtCalls, 'call'>,
	pool: string,
	name: string,
	signal: AbortSignal,
): Promise<VolumeDescription | undefined> {
	try {
		const {capacity, allocation} = await session.call(
			procedures.storageVolGetInfo,
			{vol: volumeOf(pool, name)},
			signal,
		);
		return {name, capacity, allocation};
	} catch (error) {
		if (isLibvirtError(error, libvirtCode.noStorageVol)) {
			return undefined;
		}

		throw error;
	}
}

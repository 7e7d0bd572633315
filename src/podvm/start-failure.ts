/**
 * Explains to an operator why libvirt refused a step of a start or of a check: names the pool or network with its
 * setting, says whether it exists, is active and has space, and whether the image still exists. Only asks libvirt after
 * a failure.
 */
import {byteSize} from '../core/byte-size.ts';
import {AdaptorError} from '../core/errors.ts';
import {isLibvirtError, LibvirtError, libvirtCode} from '../libvirt/wire/errors.ts';
import {procedures} from '../libvirt/wire/procedures.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {notFound, type BaseVolume} from './volumes.ts';

type Calls = Pick<LibvirtCalls, 'call'>;

/** What a start uses. */
export interface StartObjects {
	/** LIBVIRT_POOL */
	readonly pool: string;
	/** LIBVIRT_NET */
	readonly network: string;
	/** The image, once it is known. */
	readonly base?: Pick<BaseVolume, 'name'> | undefined;
}

/**
 * Below this, no pod VM can start: its overlay and its cloud-init disk need some hundred KiB. libvirt does not count
 * what the file system reserves.
 */
const leastFreeBytes = 1024n ** 2n;
const errnoNoSpace = 28;

/** Names the setting of a pool or network that does not exist. @returns other errors unchanged */
export function withSetting(error: unknown, {pool, network}: Pick<StartObjects, 'pool' | 'network'>): unknown {
	if (isLibvirtError(error, libvirtCode.noStoragePool)) {
		return new AdaptorError({
			code: 'not-found',
			what: `Pool ${pool} (LIBVIRT_POOL) does not exist on the KVM host`,
			remedy: 'Set LIBVIRT_POOL to a pool that "virsh pool-list --all" shows on the KVM host, or define and start it there.',
			cause: error,
		});
	}

	if (isLibvirtError(error, libvirtCode.noNetwork)) {
		return new AdaptorError({
			code: 'not-found',
			what: `Network ${network} (LIBVIRT_NET) does not exist on the KVM host`,
			remedy: 'Set LIBVIRT_NET to a network that "virsh net-list --all" shows on the KVM host, or define and start it there.',
			cause: error,
		});
	}

	return error;
}

/** @returns an error that names the cause, or `failure` itself if it is not found */
export async function explainFailure(
	session: Calls,
	objects: StartObjects,
	failure: unknown,
	signal: AbortSignal,
): Promise<unknown> {
	const named = withSetting(failure, objects);
	if (named !== failure || !(failure instanceof LibvirtError)) {
		return named;
	}

	try {
		return (
			(failure.procedure.startsWith('storage')
				? await poolProblem(session, objects.pool, failure, signal)
				: await networkProblem(session, objects.network, failure, signal)) ??
			(await imageProblem(session, objects, failure, signal)) ??
			failure
		);
	} catch {
		return failure;
	}
}

async function poolProblem(
	session: Calls,
	name: string,
	failure: LibvirtError,
	signal: AbortSignal,
): Promise<AdaptorError | undefined> {
	const {pool} = await session.call(procedures.storagePoolLookupByName, {name}, signal);
	const {active} = await session.call(procedures.storagePoolIsActive, {pool}, signal);
	if (active === 0) {
		return new AdaptorError({
			code: 'failed-precondition',
			what: `Pool ${name} (LIBVIRT_POOL) is not active`,
			remedy: `Run "virsh pool-start ${name}" on the KVM host.`,
			cause: failure,
		});
	}

	// libvirt has no error number for this: the text is that of the C library, or that of qemu-img.
	const saysFull = failure.errno === errnoNoSpace || failure.libvirtMessage.includes('No space left on device');
	const {available, capacity} = await session.call(procedures.storagePoolGetInfo, {pool}, signal);
	return saysFull || available < leastFreeBytes
		? new AdaptorError({
				code: 'resource-exhausted',
				what: `Pool ${name} (LIBVIRT_POOL) is full (${byteSize(available)} of ${byteSize(capacity)} free)`,
				remedy: 'Run "cloud-api-adaptor image prune", add space, or lower LIBVIRT_ROOT_DISK_SIZE.',
				cause: failure,
			})
		: undefined;
}

async function networkProblem(
	session: Calls,
	name: string,
	failure: LibvirtError,
	signal: AbortSignal,
): Promise<AdaptorError | undefined> {
	const {net} = await session.call(procedures.networkLookupByName, {name}, signal);
	const {active} = await session.call(procedures.networkIsActive, {net}, signal);
	return active === 0
		? new AdaptorError({
				code: 'failed-precondition',
				what: `Network ${name} (LIBVIRT_NET) is not active`,
				remedy: `Run "virsh net-start ${name}" on the KVM host.`,
				cause: failure,
			})
		: undefined;
}

/**
 * An image may be removed between the check at the start and the creation of the disk: then this is the cause, not the
 * error of libvirt or QEMU for a missing file. (A VM that runs by then keeps the file until it ends.)
 */
async function imageProblem(
	session: Calls,
	{pool, base}: StartObjects,
	failure: LibvirtError,
	signal: AbortSignal,
): Promise<AdaptorError | undefined> {
	if (base === undefined) {
		return undefined;
	}

	try {
		await session.call(procedures.storageVolGetXmlDesc, {vol: volumeOf(pool, base.name), flags: 0}, signal);
		return undefined;
	} catch (error) {
		return isLibvirtError(error, libvirtCode.noStorageVol)
			? notFound(pool, base.name, 'it was removed while the VM was being started', failure)
			: undefined;
	}
}

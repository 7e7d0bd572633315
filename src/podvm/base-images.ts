/**
 * Checks the content of the volumes that pod VMs start from. Anyone who can create pods can name any volume of the
 * pool, and the host opens the files that the header of a volume names. So each start checks the first bytes of the
 * volume itself. The same rules apply to the configured image, with one exception: the administrator may have created
 * it as an overlay, so a backing file only causes a warning (docs/adr/0028).
 *
 * A volume is read once. The result is stored with its path and the time of its last change, which libvirt reports at
 * every start anyway.
 */
import {FailureLog} from '../core/concurrency/failure-log.ts';
import {KeyedMutex} from '../core/concurrency/keyed-mutex.ts';
import {retry} from '../core/concurrency/retry.ts';
import {AdaptorError} from '../core/errors.ts';
import {isLibvirtError, isRefusal, libvirtCode, LibvirtConnectionError} from '../libvirt/wire/errors.ts';
import type {StorageVol} from '../libvirt/wire/procedures.ts';
import type {Logger} from '../core/log.ts';
import {present} from '../core/present.ts';
import {
	checkBootRecord,
	headBytes,
	readFormat,
	isOverlay,
	backingFileRefusal,
	type ImageFormat,
} from '../vm-image/judgement.ts';
import type {ReadImage} from '../vm-image/qcow2.ts';
import {UnfitImageError} from '../vm-image/unfit-image.ts';
import type {LibvirtCalls} from './libvirt-calls.ts';
import {volumeOf} from '../libvirt/storage/volume-name.ts';
import {notFound, readBaseVolume, type BaseVolume} from './volumes.ts';

type Calls = Pick<LibvirtCalls, 'call' | 'download'>;

/** Read in one call: header, tables and boot record of an image as qemu-img writes it. */
const startBytes = 512 * 1024;
/** Retries after a lost connection. A download changes nothing, so it may be repeated. */
const downloadAttempts = 3;
/** More than the number of images in a pool. */
const rememberedAtMost = 100;

/** The content of a volume. */
export interface VolumeContent {
	readonly format: ImageFormat['format'];
	/** Whether it has a backing file, which the host opens too. */
	readonly hasBackingFile: boolean;
}

/** The content, or why no VM may start from the volume. */
type Judgement = VolumeContent | UnfitImageError;

/**
 * Checks the content of a volume.
 * @throws UnfitImageError for one that no pod VM may start from; LibvirtError for one that cannot be read
 */
export async function judgeVolume(
	session: Pick<Calls, 'download'>,
	volume: StorageVol,
	signal: AbortSignal,
): Promise<VolumeContent> {
	const start = await download(session, volume, 0n, startBytes, signal);
	const read: ReadImage = async (at, length) =>
		at + BigInt(length) <= BigInt(start.length) || start.length < startBytes
			? start.subarray(Number(at), Number(at) + length)
			: download(session, volume, at, length, signal);
	const head = start.subarray(0, headBytes);
	const format = readFormat(head);
	await checkBootRecord(format, head, read);
	return {format, hasBackingFile: isOverlay(format, head)};
}

async function download(
	session: Pick<Calls, 'download'>,
	volume: StorageVol,
	offset: bigint,
	length: number,
	signal: AbortSignal,
): Promise<Buffer> {
	return retry(
		async () => {
			const chunks: Buffer[] = [];
			for await (const chunk of session.download(volume, {offset, length}, signal)) {
				chunks.push(chunk);
			}

			return Buffer.concat(chunks);
		},
		{
			// The session itself waits for a new connection.
			backOff: [0, 0],
			onFailure(error, {attempt}) {
				if (!(error instanceof LibvirtConnectionError) || isRefusal(error) || attempt === downloadAttempts) {
					throw error;
				}
			},
		},
		signal,
	);
}

export class BaseImages {
	readonly #session: Calls;
	readonly #pool: string;
	readonly #configured: string;
	readonly #log: Logger;
	readonly #overlays = new FailureLog();
	readonly #verdicts = new Map<string, {readonly changedAt: string; readonly verdict: Judgement}>();
	/** If several starts need the same volume, the first one reads it. */
	readonly #mutex = new KeyedMutex();

	/** @param volumeName LIBVIRT_VOL_NAME: the image that no pod chose */
	constructor({
		session,
		pool,
		volumeName,
		log,
	}: {
		readonly session: Calls;
		readonly pool: string;
		readonly volumeName: string;
		readonly log: Logger;
	}) {
		this.#session = session;
		this.#pool = pool;
		this.#configured = volumeName;
		this.#log = log;
	}

	/**
	 * The volume of this name, or the version that it is an alias of.
	 * @throws AdaptorError as `readBaseVolume`, and 'failed-precondition' for a volume that no pod VM may start from
	 */
	async read(name: string, signal: AbortSignal): Promise<BaseVolume> {
		const base = await readBaseVolume(this.#session, this.#pool, name, signal);
		const verdict = await this.#mutex.run(base.path, async () => this.#judge(base, signal), signal);
		if (verdict instanceof UnfitImageError) {
			throw this.#refusal(base, verdict.why, verdict.remedy, verdict);
		}

		if (verdict.format !== base.format) {
			throw this.#refusal(
				base,
				`its content is ${verdict.format}, but libvirt reports ${base.format}`,
				`Run "virsh pool-refresh ${this.#pool}" on the KVM host, so that libvirt reads the volume again.`,
			);
		}

		this.#allowOverlay(name, base, verdict);
		return base;
	}

	#allowOverlay(name: string, base: BaseVolume, {hasBackingFile}: VolumeContent): void {
		if (name !== this.#configured) {
			if (hasBackingFile) {
				const {why, remedy} = backingFileRefusal();
				throw this.#refusal(
					base,
					why,
					`${remedy} As an alternative, an administrator may set LIBVIRT_VOL_NAME to this volume.`,
				);
			}
		} else if (!hasBackingFile) {
			this.#overlays.recovered(base.path);
		} else if (this.#overlays.failed(base.path)) {
			this.#log.warn(
				{pool: this.#pool, volume: base.name},
				'the configured image has a backing file, which is not checked',
			);
		}
	}

	async #judge({name, path, changedAt}: BaseVolume, signal: AbortSignal): Promise<Judgement> {
		const remembered = this.#verdicts.get(path);
		if (remembered !== undefined && remembered.changedAt === changedAt) {
			return remembered.verdict;
		}

		const verdict = await judgeVolume(this.#session, volumeOf(this.#pool, name), signal).catch((error: unknown) => {
			if (error instanceof UnfitImageError) {
				return error;
			}

			throw isLibvirtError(error, libvirtCode.noStorageVol)
				? notFound(this.#pool, name, 'the pool has no such volume', error)
				: error;
		});
		this.#verdicts.delete(path);
		if (changedAt !== undefined) {
			this.#verdicts.set(path, {changedAt, verdict});
			const [oldest = path] = this.#verdicts.keys();
			if (this.#verdicts.size > rememberedAtMost) {
				this.#verdicts.delete(oldest);
			}
		}

		return verdict;
	}

	#refusal({name}: BaseVolume, why: string, remedy: string, cause?: UnfitImageError): AdaptorError {
		return new AdaptorError({
			code: 'failed-precondition',
			reason: 'ImageNotUsable',
			what: `Could not use the volume as a pod VM image: ${why}`,
			where: {pool: this.#pool, volume: name},
			remedy: `${remedy} "cloud-api-adaptor image push" uploads an image as a new volume.`,
			...present({cause}),
		});
	}
}

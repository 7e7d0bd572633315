/** Disk images from which a VM could boot, as far as firmware and we look at them, made by a real qemu-img. */
import {execFile} from 'node:child_process';
import {mkdtempDisposable, readFile, truncate, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {promisify} from 'node:util';

/** The least that firmware boots from, as far as it is looked at: the mark of zipl's boot record. */
export const bootRecord = Buffer.alloc(512);
bootRecord.write('zIPL');

/** An image that qemu-img makes of the guest's first bytes. */
export async function qcow2Of(start: Buffer, capacity: bigint, ...options: readonly string[]): Promise<Buffer> {
	await using directory = await mkdtempDisposable(`${tmpdir()}/caat-image-`);
	const [raw, image] = [`${directory.path}/raw`, `${directory.path}/qcow2`];
	await writeFile(raw, start);
	await truncate(raw, Number(capacity));
	await promisify(execFile)('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...options, raw, image]);
	return await readFile(image);
}

/** Disk images that pass the checks for bootable images, made by a real qemu-img. */
import {execFile} from 'node:child_process';
import {mkdtempDisposable, readFile, truncate, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {promisify} from 'node:util';

/** The smallest content that counts as bootable: the magic number of the boot record of zipl. */
export const bootRecord = Buffer.alloc(512);
bootRecord.write('zIPL');

/** An image whose guest disk begins with these bytes, made by qemu-img. */
export async function qcow2Of(start: Buffer, capacity: bigint, ...options: readonly string[]): Promise<Buffer> {
	await using directory = await mkdtempDisposable(`${tmpdir()}/caat-image-`);
	const [raw, image] = [`${directory.path}/raw`, `${directory.path}/qcow2`];
	await writeFile(raw, start);
	await truncate(raw, Number(capacity));
	await promisify(execFile)('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...options, raw, image]);
	return await readFile(image);
}

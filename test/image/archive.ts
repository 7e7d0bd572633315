/** Layers of container images, made by GNU tar. */
import {mkdir, mkdtemp, rm, symlink, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {execute} from './storage.ts';

/** Contents by path; null is a directory, an object a link. */
export type Files = Readonly<Record<string, string | Buffer | null | {readonly linkTo: string}>>;

/** @param options of tar, e.g. `--format=pax` */
export async function makeTar(files: Files, ...options: readonly string[]): Promise<Buffer> {
	const root = await mkdtemp(join(tmpdir(), 'caat-layer-'));
	try {
		for (const [path, content] of Object.entries(files)) {
			await mkdir(join(root, dirname(path)), {recursive: true});
			if (content === null) {
				await mkdir(join(root, path), {recursive: true});
			} else if (typeof content === 'object' && 'linkTo' in content) {
				await symlink(content.linkTo, join(root, path));
			} else {
				await writeFile(join(root, path), content);
			}
		}

		const {stdout} = await execute('tar', ['-C', root, '-c', ...options, ...Object.keys(files)], {
			encoding: 'buffer',
			maxBuffer: 2 ** 30,
		});
		return stdout;
	} finally {
		await rm(root, {recursive: true});
	}
}

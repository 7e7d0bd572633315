import test from 'ava';
import {lstat, mkdtemp, readFile, readlink, rm} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {run} from './command.ts';
import {fileType, newcArchive} from './newc.ts';

test('cpio unpacks files of every length modulo four, empty files, directories, links and modes', async t => {
	const directory = await mkdtemp(join(tmpdir(), 'caat-newc-'));
	t.teardown(async () => rm(directory, {recursive: true}));
	const lengths = [0, 1, 2, 3, 4, 5, 4095, 4096];
	await run(
		'cpio',
		['-i', '--quiet', '-D', directory],
		{
			input: newcArchive([
				{path: 'd', mode: fileType.directory | 0o750},
				...lengths.map(length => ({
					path: `d/file-${length}`,
					mode: fileType.regular | 0o640,
					content: Buffer.alloc(length, 'x'),
				})),
				{path: 'link', mode: fileType.symlink | 0o777, content: Buffer.from('d/file-1')},
			]),
		},
		AbortSignal.timeout(60_000),
	);
	for (const length of lengths) {
		const path = join(directory, 'd', `file-${length}`);
		t.deepEqual(await readFile(path), Buffer.alloc(length, 'x'));
		t.is((await lstat(path)).mode, fileType.regular | 0o640);
	}

	t.is((await lstat(join(directory, 'd'))).mode, fileType.directory | 0o750);
	t.is(await readlink(join(directory, 'link')), 'd/file-1');
});

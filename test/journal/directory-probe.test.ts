import {execFile} from 'node:child_process';
import {chmod, chown, mkdir, readdir, writeFile} from 'node:fs/promises';
import {promisify} from 'node:util';
import test from 'ava';
import {observeDirectory} from '../../src/journal/directory-probe.ts';
import {directoryOf} from '../support/directory.ts';

const run = promisify(execFile);

test('a writable directory is reported as writable, and no file is left in it', async t => {
	const directory = await directoryOf(t);
	const {availableBytes, ...found} = await observeDirectory(directory);
	t.deepEqual(found, {path: directory, nearest: directory});
	t.true(availableBytes > 0n);
	t.deepEqual(await readdir(directory), []);
});

test('for a missing directory, its nearest existing ancestor is tested', async t => {
	const directory = await directoryOf(t);
	await mkdir(`${directory}/a`);
	t.like(await observeDirectory(`${directory}/a/b/c`), {path: `${directory}/a/b/c`, nearest: `${directory}/a`});
	t.deepEqual(await readdir(`${directory}/a`), []);
});

test('a file in the path is reported with the reason', async t => {
	const directory = await directoryOf(t);
	await writeFile(`${directory}/file`, '');
	t.is((await observeDirectory(`${directory}/file`)).unwritable?.reason, 'not a directory');
	t.is((await observeDirectory(`${directory}/file/b`)).unwritable?.reason, 'not a directory');
});

const programOf = (
	path: string,
): string => `import {observeDirectory} from ${JSON.stringify(new URL('../../src/journal/directory-probe.ts', import.meta.url).href)};
	const {unwritable} = await observeDirectory(${JSON.stringify(path)}); process.stdout.write(String(unwritable?.reason));`;

test('a directory beneath one that this process may not enter is told with the reason', async t => {
	const directory = await directoryOf(t);
	await mkdir(`${directory}/other/a`, {recursive: true});
	await chmod(`${directory}/other`, 0o700);
	await chown(`${directory}/other`, 12_345, 12_345);
	const capabilities = '-dac_override,-dac_read_search';
	const {stdout} = await run('setpriv', [
		`--bounding-set=${capabilities}`,
		`--inh-caps=${capabilities}`,
		process.execPath,
		'--input-type=module',
		'-e',
		programOf(`${directory}/other/a/b`),
	]);
	t.regex(stdout, /^permission denied$/);
});

// In a mount namespace of their own: nobody else sees these file systems.
for (const [title, options, prepare, reason] of [
	['that is read-only', 'ro', 'true', /^read-only file system$/],
	['that is full', 'size=4k', 'head -c 4096 /dev/zero >full/file', /^no space left on device$/],
] as const) {
	test(`a file system ${title} is reported with the reason`, async t => {
		const directory = await directoryOf(t);
		await mkdir(`${directory}/full`);
		const script = `mount -t tmpfs -o ${options} tmpfs full && ${prepare} && exec "$0" --input-type=module -e "$1"`;
		const {stdout} = await run(
			'unshare',
			['--mount', 'sh', '-euc', script, process.execPath, programOf(`${directory}/full`)],
			{cwd: directory},
		);
		t.regex(stdout, reason);
	});
}

// As root nothing is forbidden, so the programs below run without the capabilities that override file modes, and full
// file systems are mounted in a namespace of their own.
import {execFile} from 'node:child_process';
import {chmod, chown, mkdir, writeFile} from 'node:fs/promises';
import {promisify} from 'node:util';
import test from 'ava';
import {fileProblem} from '../../src/core/file-error.ts';
import {directoryOf} from '../support/directory.ts';

const run = promisify(execFile);
const module = new URL('../../src/core/file-error.ts', import.meta.url).href;
const program = `import {readFile, writeFile} from 'node:fs/promises';
	import {fileProblem} from ${JSON.stringify(module)};
	const [verb, path] = process.argv.slice(1);
	const problem = await (verb === 'read' ? readFile(path) : writeFile(path, 'x'.repeat(8192))).then(
		() => undefined,
		error => fileProblem(error, path),
	);
	process.stdout.write(JSON.stringify(problem));`;

async function problemOf(verb: 'read' | 'write', path: string): Promise<unknown> {
	const capabilities = '-dac_override,-dac_read_search';
	const {stdout} = await run('setpriv', [
		`--bounding-set=${capabilities}`,
		`--inh-caps=${capabilities}`,
		process.execPath,
		'--input-type=module',
		'-e',
		program,
		verb,
		path,
	]);
	return JSON.parse(stdout) as unknown;
}

test('a file that this process may not read is told with its mode, its owner and the user', async t => {
	const file = `${await directoryOf(t)}/key.pem`;
	await writeFile(file, '');
	await chmod(file, 0o640);
	await chown(file, 12_345, 678);
	t.deepEqual(await problemOf('read', file), {
		reason: 'permission denied',
		where: {path: file, mode: '0640', owner: '12345:678', user: '0:0'},
		remedy: 'Give user 0 access to it, for example with chown or chmod. If mode and owner already allow it, look for denials of SELinux or AppArmor.',
	});
});

test('if a directory above the file is the obstacle, it is the one that is told', async t => {
	const directory = `${await directoryOf(t)}/closed`;
	await mkdir(directory);
	await chown(directory, 12_345, 678);
	await chmod(directory, 0o700);
	t.like(await problemOf('write', `${directory}/a/b`), {
		where: {path: directory, mode: '0700', owner: '12345:678', user: '0:0'},
	});
});

test('a full file system is told as such, with what makes space', async t => {
	const directory = await directoryOf(t);
	await mkdir(`${directory}/full`);
	const {stdout} = await run(
		'unshare',
		[
			'--mount',
			'sh',
			'-euc',
			'mount -t tmpfs -o size=4k tmpfs full && exec "$0" --input-type=module -e "$1" write "$2"',
			process.execPath,
			program,
			`${directory}/full/file`,
		],
		{cwd: directory},
	);
	t.deepEqual(JSON.parse(stdout), {
		reason: 'no space left on device',
		where: {path: `${directory}/full/file`},
		remedy: `Free space on the file system of ${directory}/full/file.`,
	});
});

test('any other error is told by its own words, without a remedy', async t => {
	t.deepEqual(await fileProblem(new Error('no luck'), '/x'), {reason: 'no luck', where: {path: '/x'}});
	t.deepEqual(
		await fileProblem(Object.assign(new Error("ELOOP: too many symbolic links, open '/x'"), {code: 'ELOOP'}), '/x'),
		{reason: 'too many symbolic links', where: {path: '/x'}},
	);
});
